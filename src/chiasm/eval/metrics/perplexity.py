"""Perplexity per modality, from the losses the models report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping


def perplexity(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """exp(sum of negative log-likelihoods / tokens) by name, from the `parts` of core.protocols
    Loss: name -> (sum in nats, count). Names without a token are left out: they have none.

    Sums and counts are added first, so it does not depend on how samples were batched.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for batch in parts:
        for name, (total, count) in batch.items():
            sums[name] += total
            counts[name] += count
    return {name: _exp(sums[name] / counts[name]) for name in sums if counts[name]}


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
