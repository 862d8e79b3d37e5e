"""The contrastive encoder's job."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from chiasm.core.device import model_device
from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of
from chiasm.data.images import ImageProcessor
from chiasm.data.text import train_bpe
from chiasm.hub import contrastive
from chiasm.recipes.initial import initial_config, initial_model, note_of
from chiasm.recipes.jobs.job import Context, Job
from chiasm.train.evaluation import EvalContext, EvalResult, check_metrics
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.contrastive import DualEncoder, zero_shot_weights


def build(context: Context) -> Job:
    recipe, config = context.recipe, context.recipe.model
    assert isinstance(config, ContrastiveConfig)
    if recipe.init:
        model, processor = initial_model(recipe, DualEncoder)
        config = model.config = initial_config(recipe, model.config)
    else:
        words = train_bpe(context.captions(), config.vocabulary)
        processor = contrastive.image_processor(config, words)
        model = DualEncoder(config)

    labelled = list(islice((s for s in context.test if caption_of(s) and s.images), 256))

    def evaluate(run: EvalContext) -> EvalResult:
        if not run.world.is_main:
            return EvalResult()
        found = zero_shot(model, processor, labelled)["accuracy"]
        return EvalResult.of({"zero_shot_accuracy": found})

    return Job(
        model,
        processor,
        lambda stage: context.images(stage, processor, config.shift, config.mirror),
        lambda path: contrastive.save(path, model, processor),
        evaluate if labelled else None,
        lambda stages, _: check_metrics(stages, ["zero_shot_accuracy"]),
        larger_images=f"--model.vision.image_size {4 * config.vision.image_size}",
        note=note_of(recipe, ["both towers", "tokenizer"]),
    )


@torch.no_grad()
def zero_shot(
    model: DualEncoder, processor: ImageProcessor, samples: Sequence[Sample], batch: int = 64
) -> dict[str, float]:
    """Which of the samples' distinct captions is nearest to each image: accuracy and n."""
    model.eval()
    captions = [str(caption_of(sample)) for sample in samples]
    classes = sorted(set(captions))
    device = model_device(model)
    ids, lengths = (t.to(device) for t in processor.texts(classes))
    heads = zero_shot_weights(model, [[pair] for pair in zip(ids, lengths, strict=True)])
    right = 0
    for i in range(0, len(samples), batch):
        images = [s.images[0].load() for s in samples[i : i + batch]]
        patches, grids = processor.images(images)
        nearest = (model.embed_images(patches.to(device), grids) @ heads.T).argmax(1)
        right += sum(
            classes[j] == c for j, c in zip(nearest.tolist(), captions[i : i + batch], strict=True)
        )
    return {"accuracy": right / max(1, len(samples)), "n": len(samples), "classes": len(classes)}
