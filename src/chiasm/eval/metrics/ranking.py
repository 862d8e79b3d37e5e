"""Whether what is right comes first: retrieval and classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """[N M] scores and bool -> [N] rank of each row's best positive, from 1.

    A negative that scores the same stands before it: a model that scores everything alike must not
    look perfect. Raises ValueError for other shapes, a row without a positive, or scores that are
    not numbers.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.ndim != 2 or scores.shape != positive.shape:
        raise ValueError(f"ranks of scores {scores.shape} and positives {positive.shape}")
    if not positive.any(1).all():
        raise ValueError(f"row {int((~positive.any(1)).argmax())} has no positive")
    if np.isnan(scores).any():
        raise ValueError("scores with NaN have no order")
    best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
    return 1 + ((scores >= best) & ~positive).sum(1)


def recall_at(
    scores: np.ndarray, positive: np.ndarray, at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """ "R@K": the share of queries (rows) with at least one positive among the top K."""
    rank = ranks(scores, positive)
    return {f"R@{k}": float((rank <= k).mean()) for k in at}


def top_k(scores: np.ndarray, labels: np.ndarray, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """ "top-K": the share of rows [N C] whose label [N] is among the K best classes."""
    one_hot = np.arange(scores.shape[1]) == np.asarray(labels)[:, None]
    rank = ranks(scores, one_hot)
    return {f"top-{k}": float((rank <= k).mean()) for k in at}
