"""Contrastive encoders on disk."""

from __future__ import annotations

from pathlib import Path

from chiasm.data.images import ImageProcessor
from chiasm.hub import folder as files
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.contrastive import DualEncoder


def save(path: Path, model: DualEncoder, processor: ImageProcessor) -> None:
    files.write(path, model.config, model, processor.tokenizer)


def load(path: Path) -> tuple[DualEncoder, ImageProcessor]:
    config = files.read_config(path, ContrastiveConfig)
    model = DualEncoder(config)
    files.read_weights(path, model)
    return model.eval(), image_processor(config, files.read_tokenizer(path))


def image_processor(config: ContrastiveConfig, tokenizer) -> ImageProcessor:
    vit = config.vision
    return ImageProcessor(
        vit.image_size, vit.patch_size, vit.max_patches, tokenizer, config.context
    )
