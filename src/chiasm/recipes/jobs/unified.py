"""Route B's job."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chiasm.data.caption import caption_of
from chiasm.data.text import train_bpe
from chiasm.data.tokens import read_tokens
from chiasm.data.views import Pairs, document, draw, edit, with_caption, without
from chiasm.hub import unified
from chiasm.hub.load import load_as
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
    # Moved pictures are never the same twice: only still ones are worth remembering.
    still = not (context.recipe.shift or context.recipe.mirror)
    model, processor = unified.build(config, words, autoencoder, remember=still)
    if config.tokens is not None:
        codec = processor.codec
        assert isinstance(codec, UnifiedCodec)
        codec.stored = read_tokens(Path(config.tokens), codec)
    if config.share_codes:
        share_codes(model, autoencoder.quantizer.features())
    if config.local_heads:
        look_nearby(model, processor.codec.grid[1])  # type: ignore[attr-defined]
    # Changing a picture draws its pair, so those are chosen among the others.
    undrawn = config.undrawn
    drawn = [s for s in context.train if caption_of(s) not in undrawn] if undrawn else context.train
    views, pairs = context.views(), Pairs(drawn)
    asking = ("converse", "spot", "match", "discern")
    views |= {name: with_caption(views[name]) for name in asking}
    views |= {
        "draw": without(partial(draw, drop=config.drop_condition), undrawn),
        "edit": edit(pairs, config.drop_condition),
        "document": without(document(pairs, config.drop_condition), undrawn),
    }
    return Job(
        model,
        processor,
        lambda stage: context.samples(stage, processor, views),
        lambda path: unified.save(path, model, processor),
    )
