"""Route A's job."""

from __future__ import annotations

from chiasm.core.protocols import Stream
from chiasm.hub import mllm
from chiasm.hub.load import load_as
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.jobs.job import Context, Job
from chiasm.train.stage import Stage
from chiasm.vision.contrastive import DualEncoder


def build(context: Context) -> Job:
    config = context.recipe.model
    assert isinstance(config, MLLMConfig)
    source = context.given_or_prepared(config.encoder, "encoder")
    dual, _ = load_as(source, DualEncoder, "model.encoder")
    model, processor = mllm.build(config, dual.vision)
    views = context.views()
    words = mllm.word_processor(model, processor)

    def stream(stage: Stage) -> Stream:
        if stage.data == "words":
            return context.pictures(stage, words)
        return context.samples(stage, processor, views)

    return Job(
        model,
        processor,
        stream,
        lambda path: mllm.save(path, model, processor, config),
    )
