"""Captions that have nothing to do with their image, judged by a contrastive model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of

Score = Callable[[PIL.Image.Image, str], float]
"""How well a text fits an image: the cosine of their embeddings (CLIP score, 2104.08718)."""


@dataclass
class Agreement:
    """least: lowest cosine; model: the folder of a trained encoder, from which the caller makes
    `score`. Samples without an image or a caption are kept."""

    least: float = 0.2
    model: str = ""
    score: Score | None = None

    def reason(self, sample: Sample) -> str | None:
        if self.score is None:
            raise ConfigError("agreement: needs a model; write agreement:model=RUNS/ENCODER")
        caption = caption_of(sample)
        if not caption or not sample.images:
            return None
        value = self.score(sample.images[0].load(), caption)
        if value < self.least:
            return f"caption and image agree by {value:.3f}, under {self.least}"
        return None
