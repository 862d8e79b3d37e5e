"""Masked discrete diffusion: images learned by filling in codes that were taken out
(MaskGIT, 2202.04200, section 3.1; beside next-token text in one transformer: Show-o, 2408.12528).

ids      text begin   7     3     9   end text        an image to draw, from the processor
u = .5   text begin  mask   3   mask  end text        cos(pi/4) of 3 codes, rounded up, are masked
targets   as   -      7     -     9    as   -         text keeps the next token; a masked code is
                                                      its own target; the rest of the image none
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.vocab import Vocabulary
from chiasm.unified.image_layout import image_runs


def mask_images(batch: Batch, vocabulary: Vocabulary) -> Batch:
    """The batch with codes of its drawn images masked, ceil(cos(pi u / 2) n) of the n of each,
    u uniform in [0, 1) from torch's generator, and targets at those alone. Given images and text
    stay as they are."""
    assert vocabulary.mask is not None
    code, first = image_runs(batch, vocabulary)
    drawn = torch.zeros_like(code)
    drawn[:, 1:] = code[:, 1:] & vocabulary.is_code(batch.labels[:, :-1])
    size = torch.zeros_like(first).scatter_add(1, first, drawn.long()).gather(1, first)
    at = torch.rand(code.shape, device=code.device).gather(1, first)
    count = (torch.cos(at * math.pi / 2) * size).ceil()
    # Sorted by (image, chance) each image stays where it is, so a place is a rank within it.
    chance = torch.rand(code.shape, dtype=torch.float64, device=code.device)
    here = torch.arange(code.shape[1], device=code.device).expand_as(first)
    key = torch.where(code, first + 0.5 * chance + 0.5 * ~drawn, here.double())
    rank = key.argsort(1).argsort(1) - first
    masked = drawn & (rank < count)
    rest = torch.where(code | vocabulary.is_code(batch.labels), IGNORE, batch.labels)
    return replace(
        batch,
        input_ids=torch.where(masked, vocabulary.mask, batch.input_ids),
        labels=torch.where(masked, batch.input_ids, rest),
    )
