"""Route B's job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of
from chiasm.data.objectives import (
    Pairs,
    View,
    edit,
    interleaved,
    text_to_image,
    with_caption,
    without,
)
from chiasm.data.text import train_bpe
from chiasm.data.tokens import read_tokens
from chiasm.hub import unified
from chiasm.hub.load import load_as
from chiasm.recipes.held_out import held_out_of
from chiasm.recipes.jobs.job import Context, Job, corpus
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.code_sharing import share_codes
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.local_heads import look_nearby


def build(context: Context) -> Job:
    config = context.recipe.model
    assert isinstance(config, UnifiedConfig)
    source = context.given_or_prepared(config.tokenizer, "tokenizer")
    autoencoder, _ = load_as(source, Autoencoder, "model.tokenizer")
    words = train_bpe(corpus(context.train), config.text_vocabulary)
    # Moved images are never the same twice: only still ones are worth remembering.
    still = not (context.recipe.augment.shift or context.recipe.augment.hflip)
    model, processor = unified.build(config, words, autoencoder, remember=still)
    # The codec's network stays where load_as put it: it encodes beside the training.
    if config.image_codes is not None:
        codec = processor.codec
        assert isinstance(codec, UnifiedCodec)
        codec.stored = read_tokens(Path(config.image_codes), codec)
    if config.factorized_code_embedding:
        share_codes(model, autoencoder.quantizer.features().cpu())
    if config.local_attention_init:
        look_nearby(model, processor.codec.grid[1])  # type: ignore[attr-defined]
    objectives = context.objectives()
    asking = ("chat", "word_match", "itm", "itm_hard")
    objectives |= {name: with_caption(objectives[name]) for name in asking}
    held_out_objectives = objectives | _drawing(context.test, config.held_out_captions, 0.0)
    objectives |= _drawing(context.train, config.held_out_captions, config.cfg_dropout)
    held_out = held_out_of(context, model, processor, held_out_objectives)
    return Job(
        model,
        processor,
        lambda stage: context.samples(stage, processor, objectives),
        lambda path: unified.save(path, model, processor),
        held_out,
        held_out and held_out.check,
        "--model.tokenizer RUN of an image tokenizer trained with a larger --model.image_size",
    )


def _drawing(samples: Sequence[Sample], held_out: Sequence[str], drop: float) -> dict[str, View]:
    """The objectives that generate images. Changing an image draws its pair, so those are
    chosen among the samples whose captions are drawn."""
    drawn = [s for s in samples if caption_of(s) not in held_out] if held_out else samples
    pairs = Pairs(drawn)
    return {
        "text_to_image": without(partial(text_to_image, drop=drop), held_out),
        "edit": edit(pairs, drop),
        "interleaved": without(interleaved(pairs, drop), held_out),
    }
