"""How well texts fit images, by a contrastive encoder of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import PIL.Image
import torch

from chiasm.hub.load import load_as
from chiasm.vision.contrastive import DualEncoder


def score_by(folder: Path) -> Callable[[PIL.Image.Image, str], float]:
    """score(image, text): the cosine of their embeddings, in [-1, 1]. Raises CheckpointError
    for a folder that holds no contrastive encoder."""
    model, processor = load_as(folder, DualEncoder, "agreement:model")

    @torch.inference_mode()
    def score(image: PIL.Image.Image, text: str) -> float:
        seen = model.embed_images(*processor.images([image]))
        read = model.embed_texts(*processor.texts([text]))
        return float((seen * read).sum())

    return score
