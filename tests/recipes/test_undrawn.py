"""Captions that the unified recipe is told never to draw."""

from dataclasses import replace

import numpy as np
import PIL.Image
import torch

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.quarantine import Quarantine
from chiasm.hub import autoencoder
from chiasm.recipes.jobs import unified
from chiasm.recipes.jobs.job import Context
from chiasm.recipes.recipe import find
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig


def seen(color, shape, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    meta = {"color": color, "shape": shape, "caption": f"a {color} {shape}"}
    asked = (user(Image(PIL.Image.fromarray(pixels)), "what?"), assistant(shape))
    return Sample(asked, f"{color} {shape} {seed}", meta=meta)


def test_undrawn_captions_are_seen_but_never_a_target(tmp_path):
    tokens = AutoencoderConfig(FSQConfig((4, 4)), 16, multipliers=(1, 1, 1))
    torch.manual_seed(0)
    made = Autoencoder(tokens)
    with torch.no_grad():  # so that images differ in their codes
        made.encoder.conv_out.weight.mul_(20)  # type: ignore[union-attr,operator]
    autoencoder.save(tmp_path, made)
    recipe = find("unified_interleaved")
    model = replace(
        recipe.model, tokenizer=str(tmp_path), held_out_captions=("a red circle",), layers=1
    )
    named = [(c, s) for c in ("red", "blue") for s in ("circle", "square")]
    samples = [seen(*named[n % 4], n) for n in range(8)]
    job = unified.build(
        Context(
            replace(recipe, model=model), samples, [], tmp_path, Quarantine(), lambda *_: tmp_path
        )
    )
    codec = job.processor.codec
    hidden = [s for s in samples if s.meta["caption"] == "a red circle"]
    never = {
        tuple(slot.input_ids.tolist())
        for slot in codec.encode([s.images[0].load() for s in hidden])
    }
    length = len(next(iter(never)))
    looked_at = False
    for stage in recipe.stages:
        batches = iter(job.stream_of(replace(stage, batch_tokens=600)))
        for _ in range(6):
            batch = next(batches)
            for ids, targets in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
                for start in range(len(ids) - length + 1):
                    if tuple(ids[start : start + length]) in never:
                        looked_at = True
                        codes = torch.tensor(targets[start : start + length])
                        assert not bool(codec.vocabulary.is_code(codes).any())
    assert looked_at
