"""Image tokenizers on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chiasm.data.images import ImageProcessor
from chiasm.hub import folder as files
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig


def save(path: Path, model: Autoencoder) -> None:
    """Without what only training needs: the head that read captions and those who judged."""
    plain = Autoencoder(
        replace(model.config, caption_loss_weight=0.0, perceptual=0.0, adversarial=0.0)
    )
    helpers = ("reader.", "perceptual.", "discriminator.")
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(helpers)}
    )
    files.write(path, plain.config, plain)


def load(path: Path) -> tuple[Autoencoder, ImageProcessor]:
    config = files.read_config(path, AutoencoderConfig)
    model = Autoencoder(config)
    files.read_weights(path, model)
    return model.eval(), image_processor(config)


def image_processor(config: AutoencoderConfig) -> ImageProcessor:
    return ImageProcessor(config.image_size, config.stride)
