"""Route B's job."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chiasm.data.stream import SampleStream
from chiasm.data.text import train_bpe
from chiasm.data.views import at_most, by_name, converse, describe, draw, moved, with_caption
from chiasm.hub import unified
from chiasm.hub.load import load_as
from chiasm.recipes.jobs.job import Context, Job, corpus
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import UnifiedConfig


def build(context: Context) -> Job:
    recipe, config = context.recipe, context.recipe.model
    assert isinstance(config, UnifiedConfig)
    source = (
        Path(config.tokenizer)
        if config.tokenizer
        else context.prepare("tokenizer", context.folder / "tokenizer")
    )
    autoencoder, _ = load_as(source, Autoencoder, "model.tokenizer")
    words = train_bpe(corpus(context.train), config.text_vocabulary)
    # Moved pictures are never the same twice: only still ones are worth remembering.
    model, processor = unified.build(config, words, autoencoder, remember=not recipe.shift)
    questions = at_most(converse, recipe.questions) if recipe.questions else converse
    views = {
        "converse": moved(with_caption(questions), recipe.shift),
        "describe": moved(describe, recipe.shift),
        "draw": moved(partial(draw, drop=config.drop_condition), recipe.shift),
    }

    def stream_of(stage):
        return SampleStream(
            context.train,
            by_name(stage.data or "converse+draw", views),
            processor,
            stage.batch,
            recipe.seed,
            context.quarantine,
        )

    return Job(model, processor, stream_of, lambda path: unified.save(path, model, processor))
