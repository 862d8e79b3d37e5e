#!/usr/bin/env bash
# transformers 5.23.0, PIL backend: an image processor (LLaVA, Qwen2-VL, Idefics3, SigLIP) given the path or the URL
# of an image loads it another way than the same file opened by Pillow. Transparency: the path drops
# the alpha channel (black ink on a transparent ground, as logos, icons and charts are, becomes one
# black area), the opened image is laid on white. EXIF rotation: the path is turned upright, the
# opened photograph stays on its side. A chat by {"type": "image", "path": ...} sees other pixels than
# the same chat by {"type": "image", "image": PIL image}, and evaluation than training. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 pillow==13.0.0 numpy
cat > "$folder/probe.py" <<'P'
import os
import sys

import numpy as np
import PIL.Image
import transformers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

os.chdir(sys.argv[1])
ink = np.zeros((56, 84, 4), np.uint8)
ink[20:36, 20:64, 3] = 255  # a black bar, everything else transparent
PIL.Image.fromarray(ink, "RGBA").save("logo.png")
photograph = np.zeros((64, 64, 3), np.uint8)
photograph[:32] = 255  # stored with its upper half white
rotation = PIL.Image.Exif()
rotation[274] = 3  # taken upside down
PIL.Image.fromarray(photograph).save("photograph.jpg", exif=rotation)
PIL.Image.fromarray(photograph).save("plain.png")

print("transformers", transformers.__version__)
for kind in (LlavaImageProcessorPil, Qwen2VLImageProcessorPil, Idefics3ImageProcessorPil, SiglipImageProcessorPil):
    for name in ("plain.png", "logo.png", "photograph.jpg"):
        processor = kind()
        with PIL.Image.open(name) as opened:
            pair = [np.asarray(processor(image, return_tensors="np")["pixel_values"]) for image in (name, opened)]
        contrast = [float(np.ptp(pixels)) for pixels in pair]
        apart = float(np.abs(pair[0] - pair[1]).max())
        print(f"{kind.__name__:26} {name:15} largest difference {apart:.2f}, contrast by path {contrast[0]:.2f}, "
              f"opened {contrast[1]:.2f}")  # fmt: skip
        assert (apart < 1e-6) == (name == "plain.png"), (kind, name)
        if name == "logo.png" and kind in (Idefics3ImageProcessorPil, SiglipImageProcessorPil):
            assert contrast[0] == 0 and contrast[1] > 1  # nothing is left of the bar
P
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
