"""What the runner needs to know of a kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Stream
from chiasm.core.sample import Sample
from chiasm.data.balance import answer_rarity
from chiasm.data.caption import caption_of
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.objectives import (
    View,
    at_most,
    by_name,
    caption,
    chat,
    itm,
    moved,
    own_objectives,
    word_match,
)
from chiasm.data.preference_stream import PreferenceStream
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.reader import spare_threads
from chiasm.data.replies import ReplyBatch
from chiasm.data.stream import KnapsackStream, SampleStream
from chiasm.data.turns import Mixed
from chiasm.hub.load import move
from chiasm.nn.eval_mode import evaluating
from chiasm.nn.precision import autocast
from chiasm.recipes.recipe import Recipe
from chiasm.recipes.rewards import Rewards
from chiasm.recipes.rollouts import Replies, RolloutReplies
from chiasm.train.evaluation import Evaluate
from chiasm.train.parallel import World
from chiasm.train.preferences import target_log_probs
from chiasm.train.rollouts import RolloutStream
from chiasm.train.stage import Stage

MAKING = (
    "caption",
    "itm",
    "itm_hard",
    "word_match",
    "text_to_image",
    "edit",
    "interleaved",
    "embed_align",
)
"""Objectives that replace the conversation of a sample."""


@dataclass
class Job:
    """A model with its processor, its batches by stage, its evaluation and how it is saved.

    evaluate: None where there is nothing to evaluate. check: raises ConfigError for a stage whose
    evaluation cannot be had; all ranks call it before training. larger_images: options by which the
    model sees more of an image, for a warning. note: a line for the user, of what training begins
    with.
    """

    model: Any
    processor: Any
    stream_of: Callable[[Stage], Stream]
    save: Callable[[Path], None]
    evaluate: Evaluate | None = None
    check: Callable[[Sequence[Stage], World], None] | None = None
    larger_images: str = ""
    note: str = ""

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

    def objectives(self) -> dict[str, View]:
        """What both routes can learn of a sample: see data/objectives.py."""
        questions: View = chat
        if self.recipe.questions_per_image:
            questions = at_most(chat, self.recipe.questions_per_image, answer_rarity(self.train))
        return {
            "chat": questions,
            "caption": caption,
            "word_match": lambda sample, random: self._word_match(sample, random),
            "itm": lambda sample, random: self._itm(sample, random),
            "itm_hard": lambda sample, random: self._itm_hard(sample, random),
            **own_objectives((stage.objectives for stage in self.recipe.stages), self.train),
        }

    # Made when a stage first uses them: they read every caption.
    @cached_property
    def _word_match(self) -> View:
        return word_match(self.captions())

    @cached_property
    def _itm(self) -> View:
        return itm(self.captions())

    @cached_property
    def _itm_hard(self) -> View:
        return itm(self.captions(), hard=True)

    def mixed(self, stage: Stage) -> Sequence[Sample]:
        """The training samples as the stage weighs their sources."""
        if isinstance(self.train, Mixed):
            return self.train.weighed(stage.source_weights)
        if stage.source_weights:
            raise ConfigError(
                f"stage '{stage.name}' mixes {', '.join(stage.source_weights)}, but the data is a "
                "single set; name several: --data a=2,b=1"
            )
        return self.train

    def samples(
        self, stage: Stage, processor: Processor, objectives: dict[str, View]
    ) -> SampleStream:
        """The packed batches of a stage."""
        chosen = by_name(stage.objectives or "chat", objectives)
        if stage.preference is not None:
            return self._pairs(stage, processor, chosen)
        knapsack = partial(KnapsackStream, patches=stage.max_patches or None)
        kind = knapsack if stage.packing == "knapsack" else SampleStream
        return kind(
            self.mixed(stage),
            self._moved(chosen),
            processor,
            stage.batch_size("tokens"),
            self.recipe.seed,
            self.quarantine,
            stage.loss_reduction == "sample",
            spare_threads(),
        )

    def rollouts(
        self, stage: Stage, model: Any, processor: Processor, objectives: dict[str, View]
    ) -> RolloutStream:
        """The sampled replies of a stage."""
        settings = stage.rollouts
        assert settings is not None
        replies = Replies(model, processor, stage.autocast, stage.compile)
        device = model_device(model)

        def log_probs(batch: ReplyBatch) -> Tensor:
            on_device: Any = batch.to(device)
            with evaluating(model), torch.no_grad(), autocast(stage.autocast, device):
                return target_log_probs(model, on_device, settings.temperature).cpu()

        return RolloutStream(
            self.mixed(stage),
            self._moved(by_name(stage.objectives or "chat", objectives)),
            processor,
            settings,
            self.recipe.seed,
            RolloutReplies(replies, settings),
            Rewards(settings.rewards, replies.generator, settings.time_limit),
            log_probs,
            self.quarantine,
        )

    def _moved(self, objectives: Sequence[View]) -> list[View]:
        """The objectives with their images augmented as the recipe says."""
        augment = self.recipe.augment
        return [moved(view, augment.shift, augment.hflip) for view in objectives]

    def _pairs(
        self, stage: Stage, processor: Processor, chosen: Sequence[View]
    ) -> PreferenceStream:
        """The packed preference pairs or labelled replies of a stage."""
        assert stage.preference is not None
        made = sorted(set((stage.objectives or "chat").split("+")) & set(MAKING))
        if made:
            raise ConfigError(
                f"stage '{stage.name}': objectives '{stage.objectives}' make conversations whose "
                "replies nobody compared; a stage with preference takes chat, or an objective of "
                "your own"
            )
        return PreferenceStream(
            self.mixed(stage),
            self._moved(chosen),
            processor,
            stage.batch_size("tokens"),
            self.recipe.seed,
            self.quarantine,
            threads=spare_threads(),
            labelled=stage.preference.loss == "kto",
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
        if stage.loss_reduction == "sample":
            raise ConfigError(
                f"stage '{stage.name}': loss_reduction 'sample' weighs replies, but this stage "
                "learns from images alone; leave it at 'token'"
            )
        return ImageStream(
            self.mixed(stage),
            processor,
            stage.batch_size("images"),
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
