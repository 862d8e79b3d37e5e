"""How sure a number is: intervals at 95 %."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, within [0, 1]; (0, 1) when nothing was observed.

    Unlike p ± z·sqrt(p(1-p)/n) it holds near 0 and 1, where good models live. It takes the trials
    to be independent; see bootstrap_mean for questions that share an image.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are not a proportion")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # At p = 0 and p = 1 the bound is exact, but rounding would leave 1e-17 beside it.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def mean_interval(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Interval of the mean of scores [n] in [0, 1], drawing whole groups. Where all scores are 0,
    or all 1, draws tell nothing of what was not seen; then Wilson's, of the groups."""
    if min(values) == max(values) and values[0] in (0, 1):
        count = len(set(groups))
        return wilson(count * values[0], count)
    return bootstrap_mean(values, groups)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    rounds: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values [n]; depends on the seed alone.

    groups [n]: draw whole groups instead of single values, because the questions of one image
    are right or wrong together and the interval of independent draws would be too narrow.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap_mean wants a non-empty row of values, got {values.shape}")
    if groups is None:
        sums, counts = values, np.ones(len(values))
    else:
        place = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        of = np.fromiter((place[group] for group in groups), np.int64, len(values))
        sums, counts = np.bincount(of, values), np.bincount(of).astype(np.float64)
    random = np.random.default_rng(seed)
    means = []
    step = max(1, 2_000_000 // len(sums))  # rounds at a time: 16 MB of draws
    for start in range(0, rounds, step):
        draw = random.integers(0, len(sums), (min(step, rounds - start), len(sums)))
        means.append(sums[draw].sum(1) / counts[draw].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
