"""What the runner needs to know of a kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Stream
from chiasm.core.sample import Sample
from chiasm.data.balance import answer_rarity
from chiasm.data.caption import caption_of
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.reader import spare_threads
from chiasm.data.stream import KnapsackStream, SampleStream
from chiasm.data.turns import Mixed
from chiasm.data.views import (
    View,
    at_most,
    by_name,
    converse,
    describe,
    match,
    moved,
    own_objectives,
    spot,
)
from chiasm.hub.load import move
from chiasm.recipes.recipe import Recipe
from chiasm.train.evaluation import Evaluate
from chiasm.train.parallel import World
from chiasm.train.stage import Stage


@dataclass
class Job:
    """A model with its processor, its batches by stage, its evaluation and how it is saved.

    evaluate: None where there is nothing to evaluate. check: raises ConfigError for a stage whose
    evaluation cannot be had; all ranks call it before training. larger_images: options by which the
    model sees more of an image, for a warning.
    """

    model: Any
    processor: Any
    stream_of: Callable[[Stage], Stream]
    save: Callable[[Path], None]
    evaluate: Evaluate | None = None
    check: Callable[[Sequence[Stage], World], None] | None = None
    larger_images: str = ""

    def to(self, device: str) -> None:
        """Move the model and what its processor computes with, as to save them."""
        move(self.model, self.processor, device)


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

    def given_or_prepared(self, given: str | None, name: str) -> Path:
        """The folder of a part the model needs: the one named in its configuration, or one of
        the recipe `name` trained on the same data beside it."""
        return Path(given) if given else self.prepare(name, self.folder / name)

    def views(self) -> dict[str, View]:
        """What both routes can make of a sample: see data/views.py."""
        questions: View = converse
        if self.recipe.questions:
            questions = at_most(converse, self.recipe.questions, answer_rarity(self.train))
        return {
            "converse": questions,
            "describe": describe,
            "spot": lambda sample, random: self._spotting(sample, random),
            "match": lambda sample, random: self._matching(sample, random),
            "discern": lambda sample, random: self._discerning(sample, random),
            **own_objectives((stage.data for stage in self.recipe.stages), self.train),
        }

    # Made when a stage first uses them: they read every caption.
    @cached_property
    def _spotting(self) -> View:
        return spot(self.captions())

    @cached_property
    def _matching(self) -> View:
        return match(self.captions())

    @cached_property
    def _discerning(self) -> View:
        return match(self.captions(), hard=True)

    def mixed(self, stage: Stage) -> Sequence[Sample]:
        """The training samples as the stage weighs their sources."""
        if isinstance(self.train, Mixed):
            return self.train.weighed(stage.mix)
        if stage.mix:
            raise ConfigError(f"stage '{stage.name}' mixes {', '.join(stage.mix)}, but the data is "
                              "a single set; name several: --data a=2,b=1")  # fmt: skip
        return self.train

    def samples(self, stage: Stage, processor: Processor, views: dict[str, View]) -> SampleStream:
        """The packed batches of a stage."""
        chosen = by_name(stage.data or "converse", views)
        knapsack = partial(KnapsackStream, patches=stage.patches or None)
        kind = knapsack if stage.packing == "knapsack" else SampleStream
        return kind(
            self.mixed(stage),
            [moved(view, self.recipe.shift, self.recipe.mirror) for view in chosen],
            processor,
            stage.batch,
            self.recipe.seed,
            self.quarantine,
            stage.normalise == "sample",
            spare_threads(),
        )

    def images(
        self,
        stage: Stage,
        processor: ImageProcessor,
        shift: int = 0,
        mirror: bool = False,
        uncaptioned: bool = False,
    ) -> ImageStream:
        """The images of a stage, moved by up to `shift` pixels and mirrored half of the time."""
        if stage.normalise == "sample":
            raise ConfigError(
                f"stage '{stage.name}': normalise 'sample' weighs replies, but this stage learns "
                "from images alone; leave it at 'token'"
            )
        return ImageStream(
            self.mixed(stage),
            processor,
            stage.batch,
            self.recipe.seed,
            shift,
            mirror,
            self.quarantine,
            uncaptioned,
            spare_threads(),
        )

    def captions(self) -> list[str]:
        """The captions of the training samples that have one."""
        return [caption for caption in map(caption_of, self.train) if caption]


MOST_SAMPLES = 200_000  # that a tokenizer is trained on: more would say the same


def corpus(samples: Sequence[Sample]) -> list[str]:
    """Every text of the samples, captions included: what tokenizers are trained on."""
    if len(samples) > MOST_SAMPLES:
        samples = samples[:: -(-len(samples) // MOST_SAMPLES)]
    said = [turn.text for sample in samples for turn in sample.turns]
    captions = [
        str(c)
        for sample in samples
        for c in (sample.meta.get("caption"), *sample.meta.get("captions", ()))
        if c
    ]
    return said + captions
