"""The same questions with less to see: what is still right then was not read from the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Part, Sample
from chiasm.eval.task import QuestionTask

Ablation = Literal["blind", "shuffled", "resolution"]
"""blind: no image. shuffled: the image of another question. resolution: smaller images."""

SCALES = {"half": 1 / 2, "quarter": 1 / 4, "eighth": 1 / 8}
"""Of an image's sides, in a sweep of resolutions."""


@dataclass(frozen=True)
class Variant:
    """A way to show the questions; name: "" for as they are."""

    name: str
    task: QuestionTask


def variants(task: QuestionTask, ablations: Sequence[Ablation], seed: int) -> list[Variant]:
    """The task as it is, and once more for each ablation (three times for resolution). Raises
    DataError where there are no images to take away."""
    found = [Variant("", task)]
    samples = task.samples()
    if ablations and not any(sample.images for sample in samples):
        raise DataError(f"task '{task.name}' has no images, so there is nothing to take away")
    for name in dict.fromkeys(ablations):
        if name == "shuffled":
            found.append(Variant(name, task.blinded(seed)))
        elif name == "blind":
            found.append(Variant(name, task.showing([_without(s) for s in samples])))
        else:
            for size, scale in SCALES.items():
                found.append(Variant(size, task.showing([_smaller(s, scale) for s in samples])))
    return found


@dataclass(frozen=True, eq=False)
class SmallerImage(Image):
    """An image whose sides are `scale` times as long, at least one pixel."""

    scale: float = 1.0

    def load(self) -> PIL.Image.Image:
        whole = super().load()
        width, height = (max(1, round(side * self.scale)) for side in whole.size)
        return whole.resize((width, height), PIL.Image.Resampling.LANCZOS)

    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest()} {self.scale}".encode()).hexdigest()


def _without(sample: Sample) -> Sample:
    return _parts(sample, lambda part: () if isinstance(part, Image) else (part,))


def _smaller(sample: Sample, scale: float) -> Sample:
    def smaller(part: Part) -> tuple[Part, ...]:
        if isinstance(part, Image):
            return (SmallerImage(part.source, part.where, scale),)
        return (part,)

    return _parts(sample, smaller)


def _parts(sample: Sample, change: Callable[[Part], tuple[Part, ...]]) -> Sample:
    turns = (
        turn.replace(content=tuple(new for part in turn.content for new in change(part)))
        for turn in sample.turns
    )
    return sample.replace(turns=tuple(turns))
