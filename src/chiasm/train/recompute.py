"""Activations that are computed again instead of kept (1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While inside, each block keeps its input alone and runs again in the backward pass, with the
    same random numbers and in the same precision. What hooks on a block do stays outside of it, so
    it happens once."""
    before = [block.__dict__.get("forward") for block in blocks]  # compiled ones
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
