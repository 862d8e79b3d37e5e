"""Evaluation of both routes on the held-out half of their data, between training steps.

    loss        the stage's own objectives over held-out samples, packed as in training
    accuracy    greedy replies to held-out questions, scored as `chiasm eval` does
    examples    a few of those replies, and images drawn from held-out captions

What is evaluated depends on the data and the stage alone, so evaluations compare with one another,
between runs, and for any number of ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from rich.console import Console

from chiasm.core.batch import Batch, Encoded, ImageBatch
from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError, DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, Text, split_independent, user
from chiasm.data import easy_vqa
from chiasm.data.caption import caption_of
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.load import BUILT_IN
from chiasm.data.objectives import View, by_name
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.stream import pack_evenly
from chiasm.eval.conversation import group_key
from chiasm.eval.image_use import QUESTIONS, ImageUse, image_use, shuffled_questions
from chiasm.eval.runner import replies_to
from chiasm.eval.task import QuestionTask
from chiasm.generation.best_of import draw
from chiasm.generation.generator import Generator
from chiasm.nn.eval_mode import evaluating
from chiasm.nn.precision import Precision, autocast
from chiasm.recipes.jobs.job import Context
from chiasm.train.evaluation import (
    Answer,
    Drawing,
    EvalContext,
    EvalResult,
    Sums,
    check_best,
    rng_preserved,
)
from chiasm.train.parallel import World, current
from chiasm.train.stage import Stage

T = TypeVar("T")

ANSWERING = SamplingParams(max_tokens=32)  # as chiasm eval
DRAWING = SamplingParams(temperature=1.0, top_p=0.95, guidance=1.5)  # as chiasm generate
PER_SAMPLE = 4
"""Questions asked of one sample, unless there are too few samples: those about one image are right
or wrong together, so more images tell more."""


ANNOUNCED = 64
"""Tokens of room for what stands around an image's codes: its size, ends of rows."""


class HeldOut:
    """The `Evaluate` of a model of either route.

    samples: the held-out half. objectives: as Context.objectives; words: makes batches of images
    and captions for the objective embed_align, where the route has it. closed: the answers replies
    are parsed into, None compares folded text. Samples that cannot be used are recorded in
    `quarantine`.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        samples: Sequence[Sample],
        objectives: dict[str, View],
        quarantine: Quarantine,
        words: ImageProcessor | None = None,
        closed: tuple[str, ...] | None = None,
    ):
        self.model, self.samples, self.objectives, self.words = model, samples, objectives, words
        self.quarantine, self.closed = quarantine, closed
        # Slots of their own: those that training remembers stay as they are.
        self.encoder, self.asker = copy.copy(processor), copy.copy(processor)
        self.encoder.slots, self.asker.slots, self.asker.remember = {}, {}, True
        order = np.random.default_rng(0).permutation(len(samples))
        self._order: list[int] = order.tolist()
        self._batches: dict[tuple, list[tuple[int, Batch | ImageBatch]]] = {}
        self._captions: dict[int, list[str]] = {}
        self._tasks: dict[int, QuestionTask | None] = {}

    @property
    def device(self) -> torch.device:
        return model_device(self.model)

    def check(self, stages: Sequence[Stage], world: World) -> None:
        """Encode what these stages need. ConfigError for one whose evaluation cannot be had."""
        for stage in stages:
            if not stage.evaluate_every:
                continue
            self.batches(stage, world)
            found = ["loss", *(["accuracy"] if self.task(stage) else [])]
            if stage.best_metric.removeprefix("-") not in ("", *found):
                found = self._measured(stage, found)
            check_best(stage, found)
            if stage.evaluate_examples and self.asker.codec.codes_per_image:
                self.captions(stage.evaluate_examples)
        if len(self.quarantine) and world.is_main:
            place = f": {self.quarantine.path}" if self.quarantine.path else ""
            Console(stderr=True).print(
                f"{len(self.quarantine)} held-out samples cannot be used{place}", soft_wrap=True
            )

    def __call__(self, context: EvalContext) -> EvalResult:
        stage, main = context.stage, context.world.is_main
        result = EvalResult(list(self._losses(stage, context.world)))
        task = self.task(stage)
        drawn = main and stage.evaluate_examples and self.asker.codec.codes_per_image
        if task is None and not drawn:
            return result
        # Made anew, as it lays out the weights, which were others at the last evaluation.
        generator = Generator(self.model, self.asker, precision=stage.autocast)
        if task is not None:
            self._answer(generator, task, context.world, result)
            result.images = _shown(task.samples(), stage.evaluate_examples) if main else {}
        if drawn:
            result.drawings = self._draw(generator, stage.evaluate_examples)
        return result

    @torch.no_grad()
    def _losses(self, stage: Stage, world: World) -> Iterator[tuple[int, Sums]]:
        """(number of the batch, sums of the loss and its parts) of this rank's batches."""
        for number, batch in self.batches(stage, world):
            torch.manual_seed(number)  # masked codes are drawn
            batch = batch.to(self.device)
            with autocast(stage.autocast, self.device):
                loss = self.model.loss(batch)
            yield number, {"loss": (loss.sum.item(), loss.count), **loss.numbers()}

    def _answer(
        self, generator: Generator, task: QuestionTask, world: World, result: EvalResult
    ) -> None:
        """Ask this rank's share of the questions."""
        samples = task.samples()
        share = np.array_split(np.arange(len(samples)), world.size)[world.rank].tolist()
        replies = replies_to([samples[n] for n in share], generator, ANSWERING)
        for number, reply in zip(share, replies, strict=True):
            sample = samples[number]
            correct = None if reply.error else task.score(sample, reply.text)["correct"]
            result.answers.append(
                Answer(
                    number,
                    sample.id,
                    _path(sample),
                    sample.turns[-1].text.strip(),
                    str(sample.meta["reference"]),
                    reply.text,
                    correct,
                    reply.error,
                )
            )
            if correct is not None:
                result.sums.append((number, {"accuracy": (correct, 1.0)}))

    def image_use(self, precision: Precision, limit: int = QUESTIONS) -> ImageUse | None:
        """Up to `limit` held-out questions, each also with another image. None where there are no
        questions about two different images, or none could be asked both ways."""
        task = self._questions(limit)
        pairs = shuffled_questions(task.samples(), limit) if task is not None else []
        if task is None or not pairs:
            return None
        own = [task.samples()[number] for number, _ in pairs]
        generator = Generator(self.model, self.asker, precision=precision)
        with evaluating(self.model), rng_preserved(self.device):
            replies = replies_to([*own, *(s for _, s in pairs)], generator, ANSWERING)
        both = [
            (sample, first, second)
            for sample, first, second in zip(own, replies, replies[len(own) :], strict=False)
            if not first.error and not second.error
        ]
        if not both:
            return None
        return image_use(
            [task.score(sample, first.text)["correct"] for sample, first, _ in both],
            [task.score(sample, second.text)["correct"] for sample, _, second in both],
            [group_key(sample) for sample, _, _ in both],
        )

    def _draw(self, generator: Generator, count: int) -> list[Drawing]:
        """Images of held-out captions, with the same seed every time."""
        captions = self.captions(count)
        try:
            drawings = draw(generator, captions, DRAWING) if captions else []
        except NotGenerativeError:  # an image tokenizer that has no decoder
            return []
        return [Drawing(c, d.best) for c, d in zip(captions, drawings, strict=True)]

    def captions(self, count: int) -> list[str]:
        """So many distinct held-out captions whose images can be drawn, or as many as there are."""
        if count not in self._captions:
            found: dict[str, None] = {}
            for index in self._order:
                if len(found) == count:
                    break
                if (caption := self._usable(index, self._drawable)) is not None:
                    found[caption] = None
            self._captions[count] = list(found)
        return self._captions[count]

    def _drawable(self, sample: Sample) -> str | None:
        caption = caption_of(sample)
        if not caption or not sample.images:
            return None
        ((prompt, _),) = self.asker.prompts([Sample((user(caption),), sample.id)])
        room = self.asker.max_length - len(prompt)
        return caption if room >= self.asker.codec.codes_per_image + ANNOUNCED else None

    def batches(self, stage: Stage, world: World) -> list[tuple[int, Batch | ImageBatch]]:
        """This rank's batches of the stage's objectives, with their numbers among all ranks'.
        ConfigError where the held-out half has none."""
        size = stage.batch_tokens, stage.batch_images
        key = (stage.objectives, size, stage.loss_reduction, stage.evaluate_samples, world)
        if key not in self._batches:
            make = self._word_batches if stage.objectives == "embed_align" else self._packed
            whole = make(stage)
            if not whole:
                raise ConfigError(
                    f"stage '{stage.name}': evaluate_every is {stage.evaluate_every}, but no "
                    f"held-out sample suits the objectives '{stage.objectives or 'chat'}'; add "
                    "such samples to the test half, or set it to 0"
                )
            self._batches[key] = list(enumerate(whole))[world.rank :: world.size]
        return self._batches[key]

    def _packed(self, stage: Stage) -> list[Batch]:
        rows: list[list[Encoded]] = []
        used = size = stage.batch_size("tokens")
        for encoded in self._encoded(stage):
            if not rows or used + len(encoded) > size:
                rows.append([])
                used = 0
            rows[-1].append(encoded)
            used += len(encoded)
        per_sample = stage.loss_reduction == "sample"
        return [pack_evenly(row, size, per_sample) for row in rows]

    def _encoded(self, stage: Stage) -> Iterator[Encoded]:
        """At most evaluate_samples conversations: every objective of every sample, in an order that
        is the same for every run."""
        chosen, count = by_name(stage.objectives or "chat", self.objectives), 0
        for index in self._order:
            for number, view in enumerate(chosen):
                if stage.evaluate_samples and count >= stage.evaluate_samples:
                    return
                seed = np.random.default_rng((index, number))
                encoded = self._usable(index, lambda s, v=view, r=seed: self._viewed(v(s, r)))
                if encoded is not None:
                    yield encoded
                    count += 1

    def _viewed(self, sample: Sample | None) -> Encoded | None:
        return None if sample is None else self.encoder.encode(sample)

    def _word_batches(self, stage: Stage) -> list[ImageBatch]:
        """Batches of as many images as in training, or of all where there are fewer."""
        if self.words is None:
            raise ConfigError(
                f"stage '{stage.name}': the objective embed_align is of the MLLM; name another"
            )
        suited = [i for i in self._order if self.samples[i].images and caption_of(self.samples[i])]
        found = [self.samples[i] for i in suited[: stage.evaluate_samples or None]]
        if not found:
            return []
        size = min(stage.batch_size("images"), len(found))
        stream = iter(ImageStream(found, self.words, size, 0, quarantine=self.quarantine))
        return [next(stream) for _ in range(len(found) // size)]

    def task(self, stage: Stage) -> QuestionTask | None:
        """Up to evaluate_questions held-out questions with their answers; None without any."""
        limit = stage.evaluate_questions
        if limit not in self._tasks:
            self._tasks[limit] = self._questions(limit) if limit else None
        return self._tasks[limit]

    def _questions(self, limit: int) -> QuestionTask | None:
        most = max(PER_SAMPLE, -(-limit // max(1, len(self.samples))))
        found: list[Sample] = []
        task = None
        for index in self._order:
            if len(found) >= limit:
                break
            own = self._usable(index, self._asked_of)
            if own is None:
                continue
            task, questions, usable = own, own.samples(), 0
            for place in np.random.default_rng(index).permutation(len(questions)).tolist():
                one = questions[place]
                if usable < most and self._usable(index, lambda _, q=one: self.asker.prompts([q])):
                    found.append(one)
                    usable += 1
        return task.showing(found[:limit]) if task is not None and found else None

    def _asked_of(self, sample: Sample) -> QuestionTask | None:
        """The questions of a sample, None where it has no answer in words. DataError for an answer
        that cannot be compared with."""
        if not any(_ends_in_words(part) for part in split_independent(sample)):
            return None
        return QuestionTask("held-out", [sample], self.closed)

    def _usable(self, index: int, make: Callable[[Sample], T]) -> T | None:
        sample = Sample((), f"held-out sample {index}")  # until it has been read
        try:
            sample = self.samples[index]
            return make(sample)
        except DataError as error:
            self.quarantine.sample(sample, error)
            return None

    def _measured(self, stage: Stage, found: list[str]) -> list[str]:
        """The metrics found, with the parts that the held-out loss really has."""
        with evaluating(self.model), rng_preserved(self.device):
            result = EvalResult(list(self._losses(stage, World())))
        return [*result.metrics, *found[1:]]


def held_out_of(
    context: Context,
    model: Any,
    processor: Processor,
    objectives: dict[str, View],
    words: ImageProcessor | None = None,
) -> HeldOut | None:
    """The evaluation of a job, None where its data has no held-out half."""
    if not len(context.test):
        return None
    closed = easy_vqa.ANSWERS if context.recipe.data in BUILT_IN else None
    # A quarantine of its own: bad held-out samples must not end a training. One rank writes.
    quarantine = Quarantine(context.quarantine.path if current().is_main else None)
    return HeldOut(model, processor, context.test, objectives, quarantine, words, closed)


def _ends_in_words(sample: Sample) -> bool:
    """Whether its last turn is an answer in words."""
    turns = sample.turns
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role != "user":
        return False
    return all(isinstance(part, Text) for part in turns[-1].content) and bool(
        turns[-1].text.strip()
    )


def _path(sample: Sample) -> str:
    """Of its first image; "" where that is no file."""
    source = sample.images[0].source if sample.images else None
    return str(source) if isinstance(source, Path) else ""


def _shown(samples: Sequence[Sample], count: int) -> dict[int, PIL.Image.Image | None]:
    """`count` questions spread over all, with their first images."""
    numbers = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    chosen = {int(number): samples[int(number)] for number in numbers} if count else {}
    return {number: _first_image(sample) for number, sample in chosen.items()}


def _first_image(sample: Sample) -> PIL.Image.Image | None:
    try:
        return sample.images[0].load() if sample.images else None
    except DataError:  # gone since; its answer says so
        return None
