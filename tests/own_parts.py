"""Parts of a user's own, as their module would have them (tests/recipes/test_own_parts.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from chiasm.core.sample import Sample, assistant, user
from chiasm.data.caption import caption_of
from chiasm.data.formats.format import ImageDatasetFormat
from chiasm.data.objectives import Objective
from chiasm.eval.scoring import Metric, result
from chiasm.eval.tasks.definition import Definition
from chiasm.mllm.config import CustomImages, CustomProjector, ResizeConfig
from chiasm.mllm.images.base import ImageMode
from chiasm.mllm.images.single import SingleMode
from chiasm.mllm.projectors import Projector
from chiasm.unified.config import CustomQuantizer
from chiasm.unified.quantizers import Quantized, Quantizer


@dataclass
class MeanConfig(CustomProjector):
    """Not frozen and with a list, so it has no hash."""

    sizes: list[int] = field(default_factory=lambda: [4])

    def build(self, vision: int, language: int, scale: float) -> Projector:
        return Mean(vision, language, self.sizes)


class Mean(Projector):
    """Two tokens an image, both of the mean of its features."""

    def __init__(self, vision: int, language: int, sizes: Sequence[int]):
        super().__init__()
        widths = [vision, *sizes, 2 * language]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*layers)

    def tokens(self, grid: tuple[int, int]) -> int:
        return 2

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        parts = features.split([h * w for h, w in grids.tolist()])
        return (
            self.layers(torch.stack([part.mean(0) for part in parts]))
            .unflatten(1, (2, -1))
            .flatten(0, 1)
        )


@dataclass(frozen=True)
class GreyConfig(CustomImages):
    """Images without colour."""

    def build(self, encoder, projector, image_token, words) -> ImageMode:
        return Grey(ResizeConfig(), encoder, projector, image_token, words)


class Grey(SingleMode):
    def tiles(self, image):
        return super().tiles(image.convert("L").convert("RGB"))


@dataclass(frozen=True)
class SignConfig(CustomQuantizer):
    """A bit a channel."""

    width: int = 4

    @property
    def codes(self) -> int:
        return 2**self.width

    def build(self) -> Quantizer:
        return Sign(self.width)


class Sign(Quantizer):
    def __init__(self, width: int):
        super().__init__()
        self.codes, self.width = 2**width, width
        self.register_buffer("bits", 2 ** torch.arange(width), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        flat = z.flatten(2).transpose(1, 2)
        codes = ((flat > 0) * self.bits).sum(-1)
        values = self.lookup(codes).transpose(1, 2).view_as(z)
        return Quantized(z + (values - z).detach(), codes, z.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        return ((codes[..., None] & self.bits) > 0).float() * 2 - 1

    def features(self) -> Tensor:
        return self.lookup(torch.arange(self.codes, device=self.bits.device))


class Backwards(Objective):
    """The caption, last letter first."""

    def __call__(self, sample, random):
        caption = caption_of(sample)
        if not caption or not sample.images:
            return None
        turns = (user(sample.images[0]), assistant(caption[::-1]))
        return replace(sample, turns=turns, independent=False)


def shouted(path, reading):
    for number, line in enumerate(path.read_text().splitlines()):
        yield Sample((user(line.lower()), assistant(line)), str(number))


SHOUTED = ImageDatasetFormat(
    "shouted", "Lines to be shouted", lambda look: look.path.suffix == ".shout", shouted
)
LOUD = Metric("loudness", lambda meta, reply: result(reply.isupper(), bool(reply)))
SHOUTING = Definition(
    "own_parts:LOUD", lambda folder, split: shouted(folder / split, None), "a", "a"
)


class NoDataclass(CustomProjector):
    """Forgets the decorator."""


class NoProjector:
    """Is none at all."""
