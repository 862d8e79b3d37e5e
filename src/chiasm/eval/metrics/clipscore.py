"""CLIPScore with any contrastive model (2104.08718)."""

from __future__ import annotations

import numpy as np

WEIGHT = 2.5


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """2.5 · max(cos, 0) of embeddings [N D] and [N D], pair by pair -> [N]. The weight suits
    OpenAI's CLIP; scores of different models do not compare. Raises ValueError for other shapes."""
    images, texts = np.asarray(images, np.float64), np.asarray(texts, np.float64)
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(f"clip_score of {images.shape} and {texts.shape}")
    return WEIGHT * (_unit(images) * _unit(texts)).sum(1).clip(min=0)


def reference_clip_score(
    images: np.ndarray, texts: np.ndarray, references: list[np.ndarray]
) -> np.ndarray:
    """RefCLIPScore: the harmonic mean of clip_score and the best cosine (not below 0) of each
    text [D] with its references [R D] -> [N]."""
    score, unit = clip_score(images, texts), _unit(np.asarray(texts, np.float64))
    pairs = zip(references, unit, strict=True)
    best = np.array([(_unit(r) @ text).max().clip(min=0) for r, text in pairs])
    total = score + best
    return np.divide(2 * score * best, total, out=np.zeros_like(total), where=total > 0)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
