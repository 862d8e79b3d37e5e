"""Route A's job."""

from __future__ import annotations

from pathlib import Path

from chiasm.data.stream import SampleStream
from chiasm.data.views import at_most, by_name, converse, describe, moved
from chiasm.hub import mllm
from chiasm.hub.load import load_as
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.jobs.job import Context, Job
from chiasm.vision.contrastive import DualEncoder


def build(context: Context) -> Job:
    recipe, config = context.recipe, context.recipe.model
    assert isinstance(config, MLLMConfig)
    source = (
        Path(config.encoder)
        if config.encoder
        else context.prepare("encoder", context.folder / "encoder")
    )
    dual, _ = load_as(source, DualEncoder, "model.encoder")
    model, processor = mllm.build(config, dual.vision)
    questions = at_most(converse, recipe.questions) if recipe.questions else converse
    views = {"converse": moved(questions, recipe.shift), "describe": moved(describe, recipe.shift)}

    def stream_of(stage):
        return SampleStream(
            context.train,
            by_name(stage.data or "converse", views),
            processor,
            stage.batch,
            recipe.seed,
            context.quarantine,
        )

    return Job(model, processor, stream_of, lambda path: mllm.save(path, model, processor, config))
