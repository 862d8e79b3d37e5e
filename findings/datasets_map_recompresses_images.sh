#!/usr/bin/env bash
# datasets 5.2.0 with Pillow 13.0.0: Dataset.map writes every image that the function has looked at anew, in
# the image's own format with Pillow's default quality, although the function returns another column
# only. Reading the width of a JPEG of quality 95 stores it at quality 75 with half the colour
# resolution; a lossless WebP becomes a lossy one; each further map that looks adds its loss. PNG, TIFF
# and BMP stay as they were, and so do columns that the function does not touch. Filters by size, resolution counts and prompts
# made in map degrade training images, scanned text first. Cast to Image(decode=False) before, or
# read sizes from the bytes. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0 numpy
cat > "$folder/probe.py" <<'P'
import io

import datasets
import numpy as np
import PIL
import PIL.Image
from datasets import Dataset, Features, Image

datasets.disable_progress_bars()
noise = np.random.RandomState(0).randint(0, 255, (32, 32, 3), np.uint8)
SHOWN = PIL.Image.fromarray(noise).resize((256, 256), PIL.Image.Resampling.BICUBIC)
FILES = {
    "JPEG, quality 95": ("JPEG", {"quality": 95, "subsampling": 0}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "PNG": ("PNG", {}),
}


def stored(rows):
    return rows.cast_column("image", Image(decode=False))[0]["image"]["bytes"]


def levels(one, other):
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


print("datasets", datasets.__version__, "Pillow", PIL.__version__)
for name, (kind, options) in FILES.items():
    file = io.BytesIO()
    SHOWN.save(file, kind, **options)
    image = [{"bytes": file.getvalue(), "path": None}]
    rows = Dataset.from_dict({"image": image, "n": [1]}, features=Features({"image": Image(), "n": datasets.Value("int64")}))
    untouched = rows.map(lambda row: {"m": row["n"] + 1})
    once = rows.map(lambda row: {"width": row["image"].width})
    often = rows
    for step in range(4):
        often = often.map(lambda row, step=step: {f"width{step}": row["image"].width})
    lost = levels(rows[0]["image"], once[0]["image"]), levels(rows[0]["image"], often[0]["image"])
    same = stored(untouched) == file.getvalue(), stored(once) == file.getvalue()
    print(f"{name}: {len(file.getvalue())} bytes; map that does not look keeps the bytes: {same[0]}; "
          f"map that reads the width: {same[1]}, {len(stored(once))} bytes, pixels {lost[0]:.1f} of 255 "
          f"levels off (mean), after four such maps {lost[1]:.1f}")  # fmt: skip
    assert same == (True, kind == "PNG")
    assert (lost[0] > 1) == (kind != "PNG")
P
HF_HOME="$folder/hf" HF_DATASETS_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py"
