#!/usr/bin/env bash
# transformers 5.23.0 with PyAV 18.1.0: load_video, whose backend is PyAV unless another is asked for, does not read
# Matroska and WebM: it takes the number of frames from the container's header, which these formats do
# not have (PyAV says 0). The whole clip gives IndexError, num_frames=4 or fps=2 a ValueError "exceeds
# total_num_frames=0". The same H.264 stream in MP4 is read, and PyAV itself decodes all frames of the
# others. Sets published as WebM (Something-Something v2, screen recordings) cannot be used without
# conversion. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 av==18.1.0 numpy pillow
cat > "$folder/probe.py" <<'P'
import sys

import av
import numpy as np
import transformers
from transformers.video_utils import load_video


def write(path, codec):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 8, np.uint8), "rgb24")))
        container.mux(stream.encode())


def outcome(path, **how):
    try:
        return f"{len(load_video(path, **how)[0])} frames"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


print("transformers", transformers.__version__, "PyAV", av.__version__)
for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")):
    path = f"{sys.argv[1]}/{name}"
    write(path, codec)
    with av.open(path) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    said = [outcome(path), outcome(path, num_frames=4), outcome(path, fps=2)]
    print(f"{name}: PyAV decodes {decoded}; load_video: whole {said[0]} | num_frames=4 {said[1]} | fps=2 {said[2]}")
    assert decoded == 30
    if name == "a.mp4":
        assert said == ["30 frames", "4 frames", "6 frames"]
    else:
        assert said[0].startswith("IndexError") and all(each.startswith("ValueError") for each in said[1:])
P
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
