"""The image tokenizer's job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError
from chiasm.core.sample import Sample
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.text import train_bpe
from chiasm.eval.metrics.image import psnr
from chiasm.hub import autoencoder
from chiasm.hub.load import load_as
from chiasm.recipes.initial import initial_config, initial_model, note_of
from chiasm.recipes.jobs.job import Context, Job
from chiasm.train.evaluation import EvalContext, EvalResult, check_metrics
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder, codebook_use, to_pixels
from chiasm.unified.config import AutoencoderConfig
from chiasm.vision.config import TowerOptions
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.pretrained import Encoder, load_encoder

RECONSTRUCTION = ("psnr", "code_usage", "codebook_perplexity")
"""What `reconstruction` measures."""


def build(context: Context) -> Job:
    recipe, config = context.recipe, context.recipe.model
    assert isinstance(config, AutoencoderConfig)
    model = _initial(context) if recipe.init else Autoencoder(config)
    config = model.config
    processor = autoencoder.image_processor(config)
    if config.perceptual:
        model.watch(_features(context, config.perceptual_encoder))
    if config.adversarial and not any("discriminator" in s.lr for s in context.recipe.stages):
        raise ConfigError(
            "model.adversarial wants a discriminator that learns, but no stage trains it; "
            'add it to a stage\'s lr, as --stages.0.lr \'{"encoder": 2e-3, "decoder": 2e-3, '
            '"discriminator": 1e-3}\''
        )

    captions = context.captions() if config.caption_loss_weight else []
    words = train_bpe(captions, config.caption_vocab) if captions else None
    captioned = replace(processor, tokenizer=words, context=64)

    def stream(stage: Stage) -> ImageStream:
        return context.images(stage, captioned, config.shift, config.mirror, uncaptioned=True)

    with_images = list(islice((s for s in context.test if s.images), 128))

    def evaluate(run: EvalContext) -> EvalResult:
        if not run.world.is_main:
            return EvalResult()
        return EvalResult.of(reconstruction(model, processor, with_images))

    return Job(
        model,
        processor,
        stream,
        lambda path: autoencoder.save(path, model),
        evaluate if with_images else None,
        lambda stages, _: check_metrics(stages, RECONSTRUCTION),
        larger_images=f"--model.image_size {4 * config.image_size}",
        note=note_of(recipe, ["encoder", "quantizer", "decoder"]),
    )


def _initial(context: Context) -> Autoencoder:
    """The tokenizer of the recipe's `init`; what only helps to train it is fresh."""
    loaded, _ = initial_model(context.recipe, Autoencoder)
    model = Autoencoder(initial_config(context.recipe, loaded.config))
    model.load_state_dict(model.state_dict() | loaded.state_dict())
    return model


def _features(context: Context, given: str | None) -> Encoder:
    """The encoder that the perceptual loss asks: one of ours, prepared on the same data where none
    is named, or one of transformers."""
    if given is None or (Path(given) / "model.json").exists():
        source = context.given_or_prepared(given, "encoder")
        dual, _ = load_as(source, DualEncoder, "model.perceptual_encoder", "cpu")
        return dual.vision
    return load_encoder(given, TowerOptions())


@torch.no_grad()
def reconstruction(
    model: Autoencoder, processor: ImageProcessor, samples: Sequence[Sample], batch: int = 64
) -> dict[str, float]:
    """Mean PSNR (dB) of reconstructed images, share and perplexity of the codebook used."""
    model.eval()
    scores: list[float] = []
    codes = []
    for i in range(0, len(samples), batch):
        pixels = pixels_of(processor, samples[i : i + batch])
        codes.append(model.encode(pixels.to(model_device(model))))
        restored = model.decode(codes[-1]).cpu()
        for original, again in zip(pixels, restored, strict=True):
            scores.append(psnr(original.numpy(), again.numpy()))
    return {"psnr": float(np.mean(scores)), **codebook_use(torch.cat(codes), model.quantizer.codes)}


def pixels_of(processor: ImageProcessor, samples: Sequence[Sample]) -> torch.Tensor:
    """[N 3 H W] of the samples' first images."""
    patches, grids = processor.images([s.images[0].load() for s in samples])
    height, width = grids[0].tolist()
    return to_pixels(patches, (height, width), processor.patch_size)
