"""Route A's job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Stream
from chiasm.data.processor import Processor
from chiasm.hub import mllm
from chiasm.hub.initial import rebuilt
from chiasm.hub.load import load_as, published_base
from chiasm.hub.source import is_hub_id, local_folder
from chiasm.mllm.config import MLLMConfig
from chiasm.mllm.model import MLLM
from chiasm.recipes.held_out import held_out_of
from chiasm.recipes.initial import initial_config, initial_model, note_of
from chiasm.recipes.jobs.job import Context, Job
from chiasm.train.stage import Stage
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.pretrained import Encoder, load_encoder


def build(context: Context) -> Job:
    config = context.recipe.model
    assert isinstance(config, MLLMConfig)
    if context.recipe.init:
        model, processor, note = _initial(context)
    else:
        _check_adapters(context, config)
        model, processor, note = *mllm.build(config, _encoder(context, config)), ""
    objectives = context.objectives()
    words = mllm.word_processor(model, processor)

    def stream(stage: Stage) -> Stream:
        if stage.objectives == "embed_align":
            return context.images(stage, words)
        if stage.rollouts is not None:
            return context.rollouts(stage, model, processor, objectives)
        return context.samples(stage, processor, objectives)

    held_out = held_out_of(context, model, processor, objectives, words)
    rates = {name for stage in context.recipe.stages for name in stage.lr}
    model.trained_whole = tuple(name for name in ("vision", "projector") if name in rates)
    return Job(
        model,
        processor,
        stream,
        lambda path: mllm.save(path, model, processor, model.config, _published_base(model)),
        held_out,
        held_out and held_out.check,
        "--model.encoder with a pretrained encoder of larger images (docs/train.md), or tiles: "
        '--model.image_processing \'{"kind": "anyres"}\'',
        note,
    )


def _initial(context: Context) -> tuple[MLLM, Processor, str]:
    """The model of the recipe's `init` with what the recipe sets anew, and a line about it."""
    recipe = context.recipe
    loaded, processor = initial_model(recipe, MLLM)
    config = initial_config(recipe, loaded.config)
    if (
        config.lora is not None
        and config.lora.apart
        and "language_model" not in recipe.init_overrides
    ):
        config = replace(config, language_model=_base_of(recipe.init))
    _check_adapters(context, config)
    model, processor, fresh = rebuilt(
        loaded, processor, config, recipe.init_overrides, lambda: _encoder(context, config)
    )
    parts = ("encoder", "projector", "language model")
    kept = [name for name in parts if name not in fresh]
    return model, processor, note_of(recipe, [*kept, "tokenizer and image processing"], fresh)


def _published_base(model: MLLM) -> mllm.Base | None:
    """What adapters are saved over, where it is a published checkpoint."""
    lora = model.config.lora
    return published_base(model.config.language_model) if lora is not None and lora.apart else None


def _base_of(init: str) -> str:
    """What adapters kept apart are over: a run's language model, or a published checkpoint."""
    folder = local_folder(init)
    if (folder / "model.json").exists():
        if not (folder / "language").is_dir():
            raise ConfigError(
                f"--init {init}: its adapters are kept apart from the language model; fold them in "
                "first (chiasm merge-lora RUN OUT), or set model.lora.merged true"
            )
        return str(folder / "language")
    return init if is_hub_id(init) else str(folder)


def _check_adapters(context: Context, config: MLLMConfig) -> None:
    """Adapters that are saved alone belong to a language model that anyone can read again."""
    if config.lora is not None and config.lora.apart:
        for stage in context.recipe.stages:
            if "language_model" in stage.lr:
                raise ConfigError(
                    f"stage '{stage.name}' trains the language model itself, which is not saved "
                    "where adapters are kept apart; set model.lora.merged true and "
                    "model.lora.quantised false, or take 'language_model' out of the stage"
                )


def _encoder(context: Context, config: MLLMConfig) -> Encoder:
    """The one given or prepared here, or one of transformers. A path that does not exist, in a
    folder that does, is a misspelt path and no hub id."""
    given = config.encoder
    if given is not None:
        path = Path(given).expanduser()
        misspelt = not path.exists() and path.parent != Path() and path.parent.is_dir()
        if not (path / "model.json").exists() and not (misspelt and "+" not in given):
            return load_encoder(given, config.vision)
    source = context.given_or_prepared(given, "encoder")
    dual, _ = load_as(source, DualEncoder, "model.encoder", "cpu")
    if isinstance(config.vision.layer, tuple):
        count = dual.vision.config.layers
        chosen = tuple(layer % (count + 1) for layer in config.vision.layer)
        dual.vision.config = replace(dual.vision.config, chosen=chosen)
    return dual.vision
