#!/usr/bin/env bash
# transformers 5.23.0 with PyAV 18.1.0: VideoMetadata.timestamps are frame index / average rate, never
# the times in the file. In a clip of variable frame rate (phones, screen recordings, web cameras) they
# are wrong by seconds, and sampling by `fps` is even in frames, not in time. Qwen3-VL, GLM-4V and
# SmolVLM write these times into the prompt ("<4.0 seconds>"), so that questions about when something
# happens are asked and trained with wrong times. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 av==18.1.0 numpy pillow
cat > "$folder/probe.py" <<'P'
import sys
from fractions import Fraction

import av
import numpy as np
import transformers
from transformers.video_utils import load_video

MS = Fraction(1, 1000)


def write(path, times):
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", MS
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 5, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Two seconds at 20 frames a second, then one frame in half a second.
times = [50 * n for n in range(40)] + [2000 + 500 * n for n in range(10)]
write(sys.argv[1], times)
with av.open(sys.argv[1]) as container:
    shown = [float(frame.time) for frame in container.decode(video=0)]
print("transformers", transformers.__version__, "PyAV", av.__version__)
_, metadata = load_video(sys.argv[1], fps=1)
said = [round(float(t), 2) for t in metadata.timestamps]
true = [round(shown[i], 2) for i in metadata.frames_indices]
print(f"average rate {metadata.fps:.2f}, frames {list(map(int, metadata.frames_indices))}")
print("times said  ", said)
print("times shown ", true)
worst = max(abs(a - b) for a, b in zip(said, true))
print(f"largest error {worst:.2f} s; the first {true.index(max(t for t in true if t < 2)) + 1} of "
      f"{len(true)} frames, sampled at 1 a second, lie in the first 2 seconds")
assert worst > 2, worst
P
"$folder/venv/bin/python" "$folder/probe.py" "$folder/clip.mp4"
