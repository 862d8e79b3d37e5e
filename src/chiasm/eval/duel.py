"""Quality at equal compute over several seeds: who wins where, and where nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from chiasm.core.errors import DataError
from chiasm.eval.metrics.paired import holm, student_p, student_quantile

ALPHA = 0.05
TOLERANCE = 0.02
"""How far from the budget a run may end, as a fraction of it."""


@dataclass(frozen=True)
class RunResult:
    """One training run of an arm, evaluated. scores: of every question in the order of the task.
    flops: all of training, parts included."""

    arm: str
    budget: float
    seed: int
    flops: float
    seconds: float
    peak_memory: float
    scores: tuple[float, ...]
    steps: dict[str, int]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def off(self) -> float:
        """Distance from the budget as a fraction of it."""
        return self.flops / self.budget - 1


@dataclass(frozen=True)
class ModelAtBudget:
    """An arm at a budget. interval: 95 %, for other seeds and other questions."""

    arm: str
    budget: float
    mean: float
    interval: tuple[float, float]
    trials: tuple[RunResult, ...]


@dataclass(frozen=True)
class PairwiseTest:
    """Two arms at one budget. difference: second less first. detectable: what a difference must
    exceed to be seen with so many seeds and questions. adjusted: p by Holm over all bouts."""

    first: str
    second: str
    budget: float
    difference: float
    interval: tuple[float, float]
    detectable: float
    p: float
    adjusted: float = 1.0

    @property
    def winner(self) -> str | None:
        if self.adjusted >= ALPHA:
            return None
        return self.second if self.difference > 0 else self.first


@dataclass(frozen=True)
class Outcome:
    """stands and bouts in order of budget; missing: (arm, budget) -> why it could not be run."""

    arms: tuple[str, ...]
    budgets: tuple[float, ...]
    stands: tuple[ModelAtBudget, ...]
    bouts: tuple[PairwiseTest, ...]
    missing: dict[tuple[str, float], str]


def judge(
    trials: Sequence[RunResult],
    images: Sequence[Hashable],
    missing: dict[tuple[str, float], str] | None = None,
) -> Outcome:
    """images: of every question; questions about one stand or fall together. The variance of a
    mean is that over seeds plus that over images (of which all seeds and arms see the same), and
    Student's t with Welch's degrees of freedom of the former. Raises DataError for an arm with
    fewer than two seeds at a budget, or scores of different questions."""
    if any(len(trial.scores) != len(images) for trial in trials):
        raise DataError("the trials were asked different questions; evaluate them again")
    arms = tuple(dict.fromkeys(trial.arm for trial in trials))
    budgets = tuple(sorted({trial.budget for trial in trials}))
    by = {
        (arm, budget): tuple(t for t in trials if (t.arm, t.budget) == (arm, budget))
        for budget in budgets
        for arm in arms
    }
    for (arm, budget), own in by.items():
        if len(own) == 1:
            raise DataError(f"{arm} at {budget:.3g} FLOPs has one seed; an interval needs two")
    stands = [_stand(own, images) for own in by.values() if own]
    bouts = [
        _bout(by[a, budget], by[b, budget], images)
        for budget in budgets
        for a, b in combinations(arms, 2)
        if by[a, budget] and by[b, budget]
    ]
    adjusted = holm([bout.p for bout in bouts])
    corrected = tuple(replace(b, adjusted=p) for b, p in zip(bouts, adjusted, strict=True))
    return Outcome(arms, budgets, tuple(stands), corrected, missing or {})


def _stand(trials: tuple[RunResult, ...], images: Sequence[Hashable]) -> ModelAtBudget:
    means = [trial.mean for trial in trials]
    seeds = float(np.var(means, ddof=1)) / len(means)
    asked = _image_variance(_by_question(trials), images)
    half = student_quantile(len(means) - 1) * math.sqrt(seeds + asked)
    middle = sum(means) / len(means)
    interval = (max(0.0, middle - half), min(1.0, middle + half))
    return ModelAtBudget(trials[0].arm, trials[0].budget, middle, interval, trials)


def _bout(
    first: tuple[RunResult, ...], second: tuple[RunResult, ...], images: Sequence[Hashable]
) -> PairwiseTest:
    a, b = ([trial.mean for trial in side] for side in (first, second))
    shares = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    difference = sum(b) / len(b) - sum(a) / len(a)
    asked = _image_variance(_by_question(second) - _by_question(first), images)
    error = math.sqrt(sum(shares) + asked)
    # Welch and Satterthwaite; without variance over seeds the lowest that it can be.
    below = sum(v * v / (len(side) - 1) for v, side in zip(shares, (a, b), strict=True))
    degrees = sum(shares) ** 2 / below if below else min(len(a), len(b)) - 1
    half = student_quantile(degrees) * error
    p = student_p(difference / error, degrees) if error else float(difference == 0)
    interval = (difference - half, difference + half)
    return PairwiseTest(first[0].arm, second[0].arm, first[0].budget, difference, interval, half, p)


def _by_question(trials: Sequence[RunResult]) -> np.ndarray:
    """Mean over seeds of every question's score."""
    return np.mean([trial.scores for trial in trials], axis=0)


def _image_variance(values: np.ndarray, images: Sequence[Hashable]) -> float:
    """Variance of the mean of values when whole images are drawn (linearised cluster estimator,
    Cochran 1977, section 9A)."""
    place = {image: i for i, image in enumerate(dict.fromkeys(images))}
    of = np.fromiter((place[p] for p in images), np.int64, len(values))
    rest = np.bincount(of, values - values.mean())
    groups = len(place)
    return float((rest**2).sum()) / len(values) ** 2 * groups / max(1, groups - 1)


def conclusions(outcome: Outcome) -> list[str]:
    """Sentences: every pair over the budgets, decided or not, and what could not be run."""
    said = []
    for first, second in combinations(outcome.arms, 2):
        own = [b for b in outcome.bouts if (b.first, b.second) == (first, second)]
        if own:
            said.append(f"{first} against {second}: " + "; ".join(map(_of_bout, own)) + ".")
            said[-1] += _over_budgets(own)
    said += [
        f"{arm} at {budget:.3g} FLOPs could not be run: {why}."
        for (arm, budget), why in outcome.missing.items()
    ]
    astray = [t for s in outcome.stands for t in s.trials if abs(t.off) > TOLERANCE]
    said += [
        f"{t.arm}, seed {t.seed}, ended {t.off:+.1%} off its budget of {t.budget:.3g} FLOPs, more "
        f"than the {TOLERANCE:.0%} allowed."
        for t in astray
    ]
    return said


def in_short(outcome: Outcome) -> str:
    """A sentence about the largest budget at which there are two arms to compare."""
    if not outcome.bouts:
        return "No two arms could be run at one budget."
    last = [bout for bout in outcome.bouts if bout.budget == outcome.bouts[-1].budget]
    said = []
    for bout in last:
        if bout.winner is None:
            said.append(f"{bout.first} and {bout.second} cannot be told apart")
        else:
            loser = bout.first if bout.winner == bout.second else bout.second
            said.append(f"{bout.winner} beats {loser}")
    return f"At {last[0].budget:.3g} FLOPs {'; '.join(said)}."


def _of_bout(bout: PairwiseTest) -> str:
    low, high = (100 * end for end in sorted(bout.interval))
    at = f"at {bout.budget:.3g} FLOPs"
    if bout.winner is None:
        why = f"less than {100 * bout.detectable:.1f} would not have been seen"
        if abs(bout.difference) > bout.detectable:
            why = f"corrected p {bout.adjusted:.2g}"
        return (
            f"{at} we cannot tell ({100 * bout.difference:+.1f} points for {bout.second}, "
            f"95 % {low:+.1f} to {high:+.1f}; {why})"
        )
    if bout.winner == bout.first:
        low, high = -high, -low
    return (
        f"{at} {bout.winner} wins by {100 * abs(bout.difference):.1f} points "
        f"(95 % {low:.1f} to {high:.1f}, corrected p {max(bout.adjusted, 1e-4):.2g})"
    )


def _over_budgets(bouts: Sequence[PairwiseTest]) -> str:
    winners = {bout.winner for bout in bouts}
    if len(bouts) < 2 or winners == {None}:
        return ""
    if len(winners) == 1:
        return f" {winners.pop()} wins at each of these budgets."
    if len(winners - {None}) == 2:
        return " Which is better depends on the budget."
    return ""
