"""Blocks that torch compiles, each by itself: the norms, rotations and activations of a block run
as few kernels, and all blocks of one shape share the code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn


@contextmanager
def compiled(blocks: Sequence[nn.Module], backend: str = "inductor") -> Iterator[None]:
    """While inside, each block's forward is compiled when it first runs (on a CPU this needs a C++
    compiler, on a GPU triton). Attention is left as it is: how a row is taken apart differs from
    batch to batch, and would be compiled anew each time. Dropout draws other numbers than without.
    """
    if blocks:
        _leave_attention_out()
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def eager() -> Iterator[None]:
    """While inside, compiled blocks run as they were written: generation has shapes of its own,
    which would each be compiled."""
    with torch.compiler.set_stance("force_eager"):
        yield


@lru_cache(maxsize=1)
def _leave_attention_out() -> None:
    # torch.compiler.disable where attention is defined would import the compiler, a second, for all
    # who never compile.
    from torch._dynamo import trace_rules

    trace_rules.add("chiasm.nn.attention")
    trace_rules.add("chiasm.nn.kernels")
