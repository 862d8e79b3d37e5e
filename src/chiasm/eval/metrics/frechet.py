"""Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np

INCEPTION = "inception-v3-pool3"


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖μa - μb‖² + Tr(Σa + Σb - 2(ΣaΣb)^½) of features [N D] and [M D] (1706.08500).

    Biased upwards with few images (2 D are the least that make sense), so only sets of one size
    compare. Raises ValueError for other shapes or fewer than two rows.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"frechet_distance of {a.shape} and {b.shape}; both [at least 2, D]")
    means = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # Σa^½ Σb Σa^½ has the eigenvalues of Σa Σb and is symmetric: no complex square roots.
    root = _root(first)
    eigenvalues = np.linalg.eigvalsh(root @ second @ root).clip(min=0)
    distance = means + np.trace(first) + np.trace(second) - 2 * float(np.sqrt(eigenvalues).sum())
    return max(0.0, float(distance))


def frechet_name(features: str) -> str:
    """What the distance may be called: FID with Inception's pool3 features only, else after its
    features."""
    return "FID" if features == INCEPTION else f"Fréchet distance ({features})"


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
