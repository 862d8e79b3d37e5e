"""What the runner needs to know of a kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiasm.core.protocols import Stream
from chiasm.core.sample import Sample
from chiasm.data.quarantine import Quarantine
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage


@dataclass
class Job:
    """A model with its processor, its batches by stage, its check and how it is saved."""

    model: Any
    processor: Any
    stream_of: Callable[[Stage], Stream]
    save: Callable[[Path], None]
    evaluate: Callable[[], dict[str, float]] | None = None


@dataclass
class Context:
    """Where a job is built: the recipe, its samples, the run's folder. prepare(name, folder)
    trains the recipe of that name on the same data and returns the folder."""

    recipe: Recipe
    train: Sequence[Sample]
    test: Sequence[Sample]
    folder: Path
    quarantine: Quarantine
    prepare: Callable[[str, Path], Path]


def corpus(samples: Sequence[Sample]) -> list[str]:
    """Every text of the samples, captions included: what tokenizers are trained on."""
    said = [turn.text for sample in samples for turn in sample.turns]
    captions = [
        str(c)
        for sample in samples
        for c in (sample.meta.get("caption"), *sample.meta.get("captions", ()))
        if c
    ]
    return said + captions
