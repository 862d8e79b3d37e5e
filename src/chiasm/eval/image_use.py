"""Whether a model uses the image: the same questions with their own and with another image.

A model that answers from the words alone can score well where answers are unevenly spread (Goyal et
al., 1612.00837, section 1); the difference says what it read from the image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from chiasm.core.protocols import Task
from chiasm.core.sample import Sample
from chiasm.eval.conversation import group_key
from chiasm.eval.metrics.interval import bootstrap_mean
from chiasm.eval.metrics.vqa import fold
from chiasm.eval.task import blind

QUESTIONS = 200
"""Questions that are asked once more with another image."""
SMALL = 0.05
"""An advantage below this is called none, however many questions were asked."""


@dataclass(frozen=True)
class ImageUse:
    """What the image adds to the score.

    n: questions asked both ways. accuracy, shuffled_accuracy: mean scores in [0, 1] with the
    question's own image and with the image of another question. interval: 95 % bootstrap of their
    difference over whole images.
    """

    n: int
    accuracy: float
    shuffled_accuracy: float
    interval: tuple[float, float]

    @property
    def gain(self) -> float:
        return self.accuracy - self.shuffled_accuracy

    @property
    def verdict(self) -> Literal["used", "not used", "unclear"]:
        """used: the interval of the gain is above 0. not used: it is below SMALL. Else too few
        questions were asked to tell."""
        low, high = self.interval
        if low > 0:
            return "used"
        return "not used" if high < SMALL else "unclear"

    def sentence(self) -> str:
        """The verdict with its numbers, in percentage points."""
        low, high = (100 * bound for bound in self.interval)
        both = f"{self.accuracy:.1%} with its own image, {self.shuffled_accuracy:.1%} with another"
        span = f"{100 * self.gain:+.1f} points, {low:+.1f} to {high:+.1f}, {self.n} questions"
        begin = {
            "used": "uses the image",
            "not used": "does not use the image",
            "unclear": "no use of the image shown",
        }[self.verdict]
        return f"{begin}: {both} ({span})"

    def to_dict(self) -> dict:
        return {**asdict(self), "gain": self.gain, "verdict": self.verdict}


def shuffled_questions(
    samples: Sequence[Sample], limit: int = QUESTIONS, seed: int = 0
) -> list[tuple[int, Sample]]:
    """(place in samples, the question with another image) of up to `limit` questions that have an
    image, whole images drawn by the seed. Empty where there are not two different images."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        if sample.images:
            groups[group_key(sample)].append(place)
    if len(groups) < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    chosen = sorted([place for group in order for place in members[group]][:limit])
    if len({group_key(samples[place]) for place in chosen}) < 2:
        return []
    return list(zip(chosen, blind([samples[place] for place in chosen], seed), strict=True))


def image_use(
    own: Sequence[float], shuffled: Sequence[float], images: Sequence[Hashable]
) -> ImageUse:
    """Scores [n] of the same questions with their own and with another image; images [n]: equal for
    questions about one. ValueError without questions."""
    difference = np.asarray(own, np.float64) - np.asarray(shuffled, np.float64)
    interval = bootstrap_mean(difference, images)
    if not difference.any():  # no draw shows what was not seen: one question in n could differ
        one = 3 / len(set(images))  # 95 % bound of a share of which nothing was seen in n
        interval = (-one, one)
    return ImageUse(len(own), float(np.mean(own)), float(np.mean(shuffled)), interval)


def question_baseline(task: Task) -> float:
    """The score of replies that only the words of the question decide: the commonest answer to the
    same words among the task's other questions, or among all others where the words stand alone."""
    samples = task.samples()
    words = [fold(sample.turns[-1].text) for sample in samples]
    answers = [fold(str(sample.meta["reference"])) for sample in samples]
    spelled = {fold(text): text for s in samples if (text := str(s.meta["reference"]))}
    every, same = Counter(answers), defaultdict(Counter)
    for word, reply in zip(words, answers, strict=True):
        same[word][reply] += 1
    scores = []
    for sample, word, reply in zip(samples, words, answers, strict=True):
        best = _commonest_other(same[word], reply) or _commonest_other(every, reply)
        scores.append(task.score(sample, spelled.get(best, ""))["correct"])
    return float(np.mean(scores))


def _commonest_other(counts: Counter[str], own: str) -> str:
    """The commonest answer when one `own` is left out, "" where nothing else is there."""
    left = [(count - (name == own), name) for name, count in counts.most_common(2)]
    return next((name for count, name in sorted(left, key=lambda one: -one[0]) if count), "")
