"""Route B's job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of
from chiasm.data.text import train_bpe
from chiasm.data.tokens import read_tokens
from chiasm.data.views import Pairs, View, document, draw, edit, with_caption, without
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
    still = not (context.recipe.shift or context.recipe.mirror)
    model, processor = unified.build(config, words, autoencoder, remember=still)
    # The codec's network stays where load_as put it: it encodes beside the training.
    if config.tokens is not None:
        codec = processor.codec
        assert isinstance(codec, UnifiedCodec)
        codec.stored = read_tokens(Path(config.tokens), codec)
    if config.share_codes:
        share_codes(model, autoencoder.quantizer.features().cpu())
    if config.local_heads:
        look_nearby(model, processor.codec.grid[1])  # type: ignore[attr-defined]
    views = context.views()
    asking = ("converse", "spot", "match", "discern")
    views |= {name: with_caption(views[name]) for name in asking}
    held_out_views = views | _drawing(context.test, config.undrawn, 0.0)
    views |= _drawing(context.train, config.undrawn, config.drop_condition)
    held_out = held_out_of(context, model, processor, held_out_views)
    return Job(
        model,
        processor,
        lambda stage: context.samples(stage, processor, views),
        lambda path: unified.save(path, model, processor),
        held_out,
        held_out and held_out.check,
        "--model.tokenizer RUN of an image tokenizer trained with a larger --model.image_size",
    )


def _drawing(samples: Sequence[Sample], undrawn: Sequence[str], drop: float) -> dict[str, View]:
    """The views that draw. Changing an image draws its pair, so those are chosen among the samples
    whose captions are drawn."""
    drawn = [s for s in samples if caption_of(s) not in undrawn] if undrawn else samples
    pairs = Pairs(drawn)
    return {
        "draw": without(partial(draw, drop=drop), undrawn),
        "edit": edit(pairs, drop),
        "document": without(document(pairs, drop), undrawn),
    }
