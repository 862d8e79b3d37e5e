"""Route B's job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chiasm.core.protocols import Stream
from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of
from chiasm.data.clips import Clips
from chiasm.data.objectives import (
    Pairs,
    View,
    edit,
    interleaved,
    text_to_image,
    with_caption,
    without,
)
from chiasm.data.processor import Processor
from chiasm.data.text import train_bpe
from chiasm.data.tokens import read_tokens
from chiasm.hub import unified
from chiasm.hub.load import load_as
from chiasm.recipes.held_out import held_out_of
from chiasm.recipes.initial import initial_config, initial_model, note_of
from chiasm.recipes.jobs.job import Context, Job, corpus
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.code_sharing import share_codes
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.local_heads import look_nearby
from chiasm.unified.model import Unified


def build(context: Context) -> Job:
    recipe = context.recipe
    model, processor = _initial(recipe) if recipe.init else _fresh(context)
    config, codec = model.config, processor.codec
    assert isinstance(codec, UnifiedCodec)
    # Moved images are never the same twice: only still ones are worth remembering.
    processor.remember = not (recipe.augment.shift or recipe.augment.hflip)
    # The codec's network stays where load_as put it: it encodes beside the training.
    if config.image_codes is not None:
        codec.stored = read_tokens(Path(config.image_codes), codec)
    if config.factorized_code_embedding:
        features = codec.autoencoder.quantizer.features().cpu()
        share_codes(model, features, trained=bool(recipe.init))
    if config.local_attention_init and not recipe.init:
        look_nearby(model, codec.grid[1])
    objectives = context.objectives()
    asking = ("chat", "word_match", "itm", "itm_hard")
    objectives |= {name: with_caption(objectives[name]) for name in asking}
    held_out_objectives = objectives | _drawing(context.test, config.held_out_captions, 0.0)
    # Replies are sampled of whole prompts: what is left out of some is for teaching guidance.
    asked = objectives | _drawing(context.train, config.held_out_captions, 0.0)
    objectives |= _drawing(context.train, config.held_out_captions, config.cfg_dropout)

    def stream(stage: Stage) -> Stream:
        if stage.rollouts is not None:
            return context.rollouts(stage, model, processor, asked)
        return context.samples(stage, processor, objectives)

    held_out = held_out_of(context, model, processor, held_out_objectives)
    return Job(
        model,
        processor,
        stream,
        lambda path: unified.save(path, model, processor),
        held_out,
        held_out and held_out.check,
        "--model.tokenizer RUN of an image tokenizer trained with a larger --model.image_size",
        note_of(recipe, ["transformer", "text tokenizer", "image tokenizer"]),
    )


def _fresh(context: Context) -> tuple[Unified, Processor]:
    """A model with random weights, over a tokenizer trained on the data."""
    config = context.recipe.model
    assert isinstance(config, UnifiedConfig)
    source = context.given_or_prepared(config.tokenizer, "tokenizer")
    autoencoder, _ = load_as(source, Autoencoder, "model.tokenizer")
    words = train_bpe(corpus(context.train), config.text_vocabulary)
    return unified.build(config, words, autoencoder)


def _initial(recipe: Recipe) -> tuple[Unified, Processor]:
    """The model of the recipe's `init`, with the recipe's options of training."""
    loaded, processor = initial_model(recipe, Unified)
    config, codec = initial_config(recipe, loaded.config), processor.codec
    model = Unified(config, loaded.vocabulary, codec.grid[1])
    model.load_state_dict(loaded.state_dict())
    processor.max_length = config.max_length
    processor.clips = Clips(config.video, codec)
    return model, processor


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
