"""Benchmarks of questions and answers, and the blind control that goes with them."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Sample
from chiasm.eval.conversation import Turns, group_key, image_key, questions_of
from chiasm.eval.metrics.thinking import without_thinking
from chiasm.eval.metrics.vqa import exact_match, fold, match_closed
from chiasm.eval.scoring import Metric, answers_of

YES_NO = frozenset({"yes", "no"})


class QuestionTask:
    """Questions with their right answers; satisfies core.protocols.Task.

    samples: conversations that end with the assistant's answer. Every assistant turn is a question
        (eval/conversation.py), or with turns="last" the last one. What is asked ends with the
        question: the answer is kept in meta["reference"], which no model reads, beside
        meta["category"] (the sample's own, else the reference or "open"/"yes/no").
    answers: the closed set replies are parsed into, and references too; None compares folded text.
        Several right answers (meta["answers"]) all count.
    limit, seed: at most this many questions, whole images drawn at random by the seed.

    Questions of one image stand side by side: a generator can then read the image once.
    Raises DataError for a sample without an answer, or with one outside the closed set.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        answers: tuple[str, ...] | None = None,
        *,
        limit: int | None = None,
        seed: int = 0,
        turns: Turns = "all",
    ):
        self.name, self.answers = name, answers
        asked = [
            self._checked(one)
            for number, sample in enumerate(samples)
            for one in questions_of(sample, number, turns)
        ]
        if not asked:
            raise DataError(f"task '{name}' has no questions")
        self._samples = _by_image(asked, limit, seed)

    def samples(self) -> Sequence[Sample]:
        return self._samples

    def score(self, sample: Sample, reply: str) -> dict[str, float]:
        """0 or 1 for correct, parsed (it is one of the answers) and open (neither yes nor no)."""
        reply, right = without_thinking(reply), answers_of(sample.meta)
        if self.answers is None:
            correct, parsed = any(exact_match(reply, one) for one in right), bool(fold(reply))
        else:
            found = match_closed(reply, self.answers)
            parsed = found is not None
            correct = parsed and found in [match_closed(one, self.answers) for one in right]
        return {
            "correct": float(correct),
            "parsed": float(parsed),
            "open": float(is_open(sample.meta["reference"])),
        }

    def blinded(self, seed: int = 0) -> QuestionTask:
        """The same questions in the same order, each about a wrong image."""
        return self.showing(blind(self._samples, seed))

    def showing(self, samples: Sequence[Sample]) -> QuestionTask:
        """The same task with the questions so changed."""
        task = copy.copy(self)
        task._samples = list(samples)
        return task

    def _checked(self, sample: Sample) -> Sample:
        reference = sample.meta["reference"]
        if self.answers is not None and match_closed(reference, self.answers) is None:
            raise DataError(
                f"{sample.where}: the answer '{reference}' is not one of the task's "
                f"{len(self.answers)} answers; correct it or extend the answers"
            )
        kind = ("open" if is_open(reference) else "yes/no") if self.answers is None else reference
        return sample.replace(meta={**sample.meta, "category": sample.meta.get("category", kind)})


class MeasuredTask(QuestionTask):
    """Questions scored by a metric (scoring.py) that reads what is right from their meta.

    Raises DataError for a reference that the metric cannot compare with, before anything is asked.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        metric: Metric,
        *,
        limit: int | None = None,
        seed: int = 0,
        turns: Turns = "all",
    ):
        super().__init__(name, samples, limit=limit, seed=seed, turns=turns)
        self.metric = metric
        for sample in self._samples:
            metric.check({"where": sample.where, **sample.meta})

    @property
    def measure(self) -> str:
        return self.metric.measure

    def score(self, sample: Sample, reply: str) -> dict[str, float]:
        return self.metric.score(sample.meta, reply)

    def summary(self, replies: Sequence[tuple[Sample, str]]) -> dict[str, float]:
        return self.metric.summary([s.meta for s, _ in replies], [reply for _, reply in replies])


@runtime_checkable
class Measured(Protocol):
    """What a task may have besides core.protocols.Task: the name of its main score, and numbers of
    all replies together."""

    @property
    def measure(self) -> str: ...

    def summary(self, replies: Sequence[tuple[Sample, str]]) -> dict[str, float]: ...


def is_open(reference: str) -> bool:
    """Whether a question with this answer asks for more than yes or no."""
    return fold(reference) not in YES_NO


def _by_image(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Samples grouped by image in order of first appearance, cut to a random subset."""
    groups: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(group_key(sample), []).append(sample)
    images = list(groups.values())
    if limit is None or limit >= len(samples):
        return [sample for group in images for sample in group]
    if limit < 1:
        raise DataError(f"a task needs at least one question, limit is {limit}")
    kept: dict[int, list[Sample]] = {}
    for i in np.random.default_rng(seed).permutation(len(images)):
        kept[int(i)] = images[i][:limit]
        limit -= len(kept[int(i)])
        if not limit:
            break
    return [sample for i in sorted(kept) for sample in kept[i]]


def blind(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every image replaced by another one: what is right now was not read from the image.

    A random cycle through all distinct images, so none stays and none is used more than once;
    questions of one image keep their places and share its wrong image. Raises DataError when
    there are not two different images.
    """
    images = {image_key(image): image for sample in samples for image in sample.images}
    if len(images) < 2:
        raise DataError(f"a blind baseline needs two different images, found {len(images)}")
    keys = list(images)
    order = np.random.default_rng(seed).permutation(len(keys))
    wrong = {keys[a]: images[keys[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}

    def swap(turn: Message) -> Message:
        parts = (wrong[image_key(p)] if isinstance(p, Image) else p for p in turn.content)
        return turn.replace(content=tuple(parts))

    return [s.replace(turns=tuple(swap(turn) for turn in s.turns)) for s in samples]
