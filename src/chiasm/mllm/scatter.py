"""Visual tokens to the placeholders they stand at, as core.batch.Slot.place says."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.core.device import moved_tensor


def scatter(tokens: Tensor, place: Tensor | None, slots: Tensor, newline: Tensor | None) -> Tensor:
    """tokens [V D] -> [n D], one for each of the n placeholders slots [B T], in reading order.

    place [V]: index into slots laid flat; -1 leaves a token out, several at one place are averaged,
    and at a placeholder without any stands newline [D]. None: in order. Raises ValueError where
    tokens and placeholders do not match. place and slots are in main memory, as what they say is
    needed to know shapes; only indices made of them go to the device.
    """
    flat = slots.flatten()
    where = flat.nonzero()[:, 0]
    if len(tokens) == len(where) and (place is None or torch.equal(place, where)):
        return tokens
    if place is None or len(place) != len(tokens):
        raise _mismatch(len(where), len(tokens))
    kept = place >= 0
    hits = torch.bincount(place[kept], minlength=len(flat))
    wrong = (hits > 0) & ~flat if newline is not None else (hits > 0) != flat
    if wrong.any():
        raise _mismatch(len(where), int((hits > 0).sum()))
    rank = moved_tensor((flat.cumsum(0) - 1)[place[kept]], tokens.device)
    if not kept.all():
        tokens = tokens[moved_tensor(kept.nonzero()[:, 0], tokens.device)]
    sums = tokens.new_zeros(len(where), tokens.shape[1]).index_add(0, rank, tokens)
    hits = moved_tensor(hits[where, None], tokens.device)
    means = sums / hits.clamp(min=1)
    return means if newline is None else torch.where(hits > 0, means, newline.to(means.dtype))


def with_class_tokens(grids: Tensor) -> Tensor:
    """Grids [N 2] -> [2N 2]: a class token counts as an image of one patch before its own."""
    return torch.stack([torch.ones_like(grids), grids], 1).flatten(0, 1)


def _mismatch(placeholders: int, tokens: int) -> ValueError:
    return ValueError(
        f"{placeholders} image placeholders but {tokens} visual tokens; "
        "encode the batch with this model's own processor"
    )
