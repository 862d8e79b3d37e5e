"""The five interfaces through which the rest of the code reaches both routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import PIL.Image
from torch import Tensor, nn

from chiasm.core import moved
from chiasm.core.batch import Batch, Encoded, Slot
from chiasm.core.sample import Sample
from chiasm.core.vocab import Vocabulary

T_co = TypeVar("T_co", covariant=True)
B_contra = TypeVar("B_contra", contravariant=True)


class ImageCodec(Protocol):
    """Images to what stands for them in a sequence, and back.

    vocabulary: the numbering shared with text, None where images cannot be written.
    codes_per_image: codes of one image, the largest where they differ; 0 where there are none.
    grids: (rows, columns) of codes that images can have. depth: neighbouring columns that belong
    to one place of the image.
    """

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    @property
    def codes_per_image(self) -> int: ...

    @property
    def grids(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def depth(self) -> int: ...

    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot an image."""
        ...

    def outline(self, size: tuple[int, int]) -> Slot:
        """The Slot of an image (width, height) before it is looked at: as many ids, the same grid
        and tiles, no patches, codes that mean nothing."""
        ...

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        """Width and height in pixels that an image (width, height) is resized to, what is filled
        in or cut off around it left aside; of all its tiles together."""
        ...

    def shown(self, encoded: Encoded) -> list[PIL.Image.Image]:
        """Its images, or the tiles of them, as the model sees them."""
        ...

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> PIL.Image.Image:
        """The image that has the code ids [n] in a grid (None: the only one there is). Raises
        NotGenerativeError where there is none."""
        ...

    def decode_all(
        self, ids: Sequence[Tensor], grids: Sequence[tuple[int, int] | None]
    ) -> list[PIL.Image.Image]:
        """decode, of several at once."""
        ...


class TokenCodec(ImageCodec, Protocol):
    """An ImageCodec whose slots are nothing but codes, which can be computed beforehand.

    fingerprint: of everything that codes depend on; different weights or preprocessing, different
    fingerprint. code_count: size of the codebook.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def code_count(self) -> int: ...

    def codes(self, images: Sequence[PIL.Image.Image]) -> list[np.ndarray]:
        """Codes [h w] int64 of each image."""
        ...


Parts = dict[str, tuple[Tensor | float, float]]
"""Name -> (sum, count)."""


@dataclass(frozen=True)
class Loss:
    """A sum and the count it is to be divided by, so that accumulation and ranks add exactly.

    sum: scalar tensor with a graph, everything included. count: what to divide by (supervised
    tokens, images). parts: name -> (sum, count) for the log; sums are scalar tensors, detached and
    still on the device, so that nothing waits for them before the step is over.
    """

    sum: Tensor
    count: int
    parts: Parts = field(default_factory=dict)

    def numbers(self) -> dict[str, tuple[float, float]]:
        """The parts as numbers; waits for the device."""
        return {name: (float(value), count) for name, (value, count) in self.parts.items()}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one training step on a batch (forward and backward); parts: of
    which parts of the model."""

    flops: float
    tokens: int
    images: int
    parts: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Trainable(Protocol[B_contra]):
    """What the loop can train: the encoder, the autoencoder and both routes."""

    def loss(self, batch: B_contra) -> Loss: ...

    def groups(self) -> dict[str, nn.Module]:
        """Disjoint parts with names; a stage trains those it gives a learning rate."""
        ...

    def blocks(self) -> list[nn.Module]:
        """Units to shard, checkpoint or compile. A model whose batches may not need all of them has
        units() to shard instead, each run once a batch while `in_step` is set; `idle` lists what
        the last batch ran for that reason alone."""
        ...

    def cost(self, batch: B_contra) -> Cost:
        """Read from the batch in main memory. A model that wants to know the means of its loss's
        parts has observe(means), called after every step."""
        ...


class VLM(Trainable[Batch], Protocol):
    """A route: hidden states for a batch, logits where they are wanted."""

    def forward(self, batch: Batch, cache: Any | None = None, seen: Tensor | None = None) -> Tensor:
        """Hidden states [B T D]. seen: what stands for the images, instead of `seen(batch)`."""
        ...

    def seen(self, batch: Batch) -> Tensor:
        """What stands for the images [S D], those in front first, each in reading order."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        ...

    def new_cache(self) -> Any: ...


class Stream(Protocol[T_co]):
    """An endless, resumable source."""

    def __iter__(self) -> Iterator[T_co]: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...

    def split(self, data_shard: int, count: int) -> None:
        """See only every count-th place of the order from now on, beginning with number
        `data_shard`: several such streams see all of it together. Before the first batch."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    temperature 0 is greedy. top_k 0 and top_p 1 keep everything. guidance is the scale s of
    classifier-free guidance u + s (c - u) on image tokens; 1 is none. max_tokens counts text
    tokens of one reply; max_images images of one reply; draw_first makes a reply begin with one.
    image_temperature, image_top_k and image_top_p: the same for image tokens where they differ.
    image_steps: passes to draw an image by masked diffusion. grid: (rows, columns) of codes for
    models that draw several sizes; None leaves it to the model.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    max_tokens: int = 64
    max_images: int = 0
    draw_first: bool = False
    seed: int = 0
    image_temperature: float | None = None
    image_top_k: int | None = None
    image_top_p: float | None = None
    image_steps: int = 12
    grid: tuple[int, int] | None = None

    @property
    def of_images(self) -> SamplingParams:
        """How the codes of images are chosen."""
        own = (self.image_temperature, self.image_top_k, self.image_top_p)
        if own == (None, None, None):
            return self
        temperature, top_k, top_p = own
        return replace(
            self,
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
        )


@dataclass(frozen=True)
class StreamChunk:
    """What generation yields, as soon as it is known: a piece of text, or a whole image.

    finish: None while more is to come; else "stop" (the model ended) or "length" (max_tokens).
    """

    text: str = ""
    image: PIL.Image.Image | None = None
    finish: str | None = None


Generate = Callable[[Sequence[Sample], SamplingParams], Iterator[tuple[int, StreamChunk]]]
"""Replies to samples whose last turn is the user's: yields (index of the sample, piece)."""


class Task(Protocol):
    """A benchmark: samples with their references, and a score for a reply."""

    name: str

    def samples(self) -> Sequence[Sample]: ...

    def score(self, sample: Sample, reply: str) -> dict[str, float]: ...


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
