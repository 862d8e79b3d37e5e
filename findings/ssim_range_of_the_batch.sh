#!/usr/bin/env bash
# torchmetrics 1.9.0: SSIM of images in 0..1 without data_range takes the range from the largest and
# the smallest value of the whole batch, so that the score of a pair depends on the other pairs of its
# batch, and the mean over a data set on the batch size and on the order of the images. scikit-image
# refuses to guess. Reconstructions of image tokenizers are compared by such numbers: a dark image
# that scores 0.15 alone scores 0.53 beside a bright one. Exits nonzero when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy torchmetrics==1.9.0 scikit-image==0.26.0
cat > "$folder/probe.py" <<'P'
import torch
import torchmetrics
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchmetrics.image import StructuralSimilarityIndexMeasure

random = torch.Generator().manual_seed(0)
ramp = torch.linspace(0, 1, 64)
bright = torch.stack([ramp.outer(ramp), ramp.outer(ramp).flip(0), ramp.outer(ramp).flip(1)])[None]
dark = 0.1 + 0.2 * bright


def noisy(image):
    return (image + 0.03 * torch.randn(image.shape, generator=random)).clamp(0, 1)


pairs = [(noisy(dark), dark), (noisy(bright), bright)]
print("torchmetrics", torchmetrics.__version__)
alone = ssim(*pairs[0]).item()
beside = ssim(*(torch.cat(each) for each in zip(*pairs)), reduction="none")[0].item()
fixed = ssim(*pairs[0], data_range=1.0).item()
print(f"one dark pair: alone {alone:.3f}, beside a bright pair {beside:.3f}, data_range=1 {fixed:.3f}")
one, two = StructuralSimilarityIndexMeasure(), StructuralSimilarityIndexMeasure()
for pair in pairs:
    one.update(*pair)
two.update(*(torch.cat(each) for each in zip(*pairs)))
print(f"mean of both: batches of 1 {one.compute():.3f}, batch of 2 {two.compute():.3f}")
assert abs(beside - fixed) < 0.01 and fixed - alone > 0.1, (alone, beside, fixed)
assert two.compute() - one.compute() > 0.05
P
"$folder/venv/bin/python" "$folder/probe.py"
