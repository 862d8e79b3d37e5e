"""Is one model better than another on the same questions, or was it luck?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from chiasm.eval.metrics.interval import bootstrap_mean


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's test: of the questions that one of two models alone gets right, is
    each as likely to be the first one's? Exact, from Binomial(n, 1/2); 1 where there are none. It
    takes questions to be independent."""
    n, k = only_first + only_second, min(only_first, only_second)
    # In logarithms: binomials of thousands do not fit a float.
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    rounds: int = 2000,
) -> tuple[tuple[float, float], float]:
    """95 % interval of mean(second - first) by drawing whole groups, and a two-sided p: the share
    of draws of the differences, moved to have mean zero, that are as far from zero as the one
    observed (Efron & Tibshirani 1993, section 16.4), at least 1 / (rounds + 1)."""
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    observed = float(differences.mean())
    interval = bootstrap_mean(differences, groups, seed=seed, rounds=rounds)
    if not differences.any():
        return interval, 1.0
    means = _draws(differences - observed, groups, seed, rounds)
    beyond = int((np.abs(means) >= abs(observed) - 1e-12).sum())
    return interval, min(1.0, (beyond + 1) / (rounds + 1))


def _draws(
    values: np.ndarray, groups: Sequence[Hashable] | None, seed: int, rounds: int
) -> np.ndarray:
    """Means of `rounds` samples of whole groups, with replacement."""
    place = {group: i for i, group in enumerate(dict.fromkeys(groups or range(len(values))))}
    of = np.fromiter((place[g] for g in (groups or range(len(values)))), np.int64, len(values))
    sums, counts = np.bincount(of, values), np.bincount(of)
    random = np.random.default_rng(seed)
    draw = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), rounds)
    return (draw @ sums) / (draw @ counts)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979): the i-th smallest of n times n - i, never
    below the one before, at most 1."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def student_p(t: float, degrees: float) -> float:
    """Two-sided p of Student's t: I_x(ν/2, 1/2) at x = ν/(ν + t²), as an integral over the angle
    whose tangent is t/√ν: ∫ cos^(ν-1) from there to π/2, over that from 0 (Gauss-Legendre)."""

    def area(low: float) -> float:
        half = (math.pi / 2 - low) / 2
        angle = low + half * (NODES + 1)
        return half * float((WEIGHTS * np.cos(angle) ** (degrees - 1)).sum())

    return area(math.atan(abs(t) / math.sqrt(degrees))) / area(0.0)


def student_quantile(degrees: float, level: float = 0.95) -> float:
    """The t that a share `level` of Student's distribution lies within, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, degrees) > 1 - level else (low, middle)
    return (low + high) / 2
