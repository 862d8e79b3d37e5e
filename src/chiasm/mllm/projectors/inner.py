"""What projectors that reach between the language model's layers have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from chiasm.mllm.projectors.base import Projector
from chiasm.nn.attention import TokenIndex
from chiasm.nn.cache import KVCache

Step = Callable[[Tensor], Tensor]
"""What happens to the hidden states [B T D] before a layer of the language model."""


@dataclass(frozen=True)
class Sight:
    """Where images stand among the tokens of a forward pass: slots [B T] bool, in main memory, are
    their placeholders, at [n] which tokens these are, laid flat, on the device; index is of the
    tokens, cache holds those before. arrange: visual tokens in the order of images to one a
    placeholder (mllm/scatter.py)."""

    slots: Tensor
    at: Tensor
    index: TokenIndex
    cache: KVCache | None
    arrange: Callable[[Tensor], Tensor] = lambda tokens: tokens


class InnerProjector(Projector):
    """A projector whose `forward` gives what stands at the placeholders, and which besides changes
    hidden states on their way. reach: how many layers the language model must have."""

    reach: int

    def inner(self, features: Tensor, grids: Tensor) -> list[Any]:
        """What it makes of the images for each of its places, whatever the text says."""
        raise NotImplementedError

    def between(
        self, features: Tensor | None, grids: Tensor | None, sight: Sight
    ) -> dict[int, Step]:
        """The steps by number of the layer they come before; features None: no new images."""
        raise NotImplementedError

    def token_flops(self, slots: Tensor, grids: Tensor) -> float:
        """What the steps cost forward beside `inner`."""
        return 0.0


@contextmanager
def taking(steps: Mapping[int, Step], layers: Sequence[nn.Module]) -> Iterator[None]:
    """While inside, hidden states pass through the steps before they enter the layers. Hooks, as
    the layers are of other people's classes and must stay so to be saved."""

    def hook(step: Step) -> Callable:
        return lambda _layer, args, kwargs: ((step(args[0]), *args[1:]), kwargs)

    handles = [
        layers[number].register_forward_pre_hook(hook(step), with_kwargs=True)
        for number, step in steps.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
