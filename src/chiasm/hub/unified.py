"""Unified models on disk: the transformer, its text tokenizer and its image tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from chiasm.data.clips import Clips
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.data.text import add_image_tokens
from chiasm.hub import autoencoder as autoencoders
from chiasm.hub import folder as files
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified


def build(
    config: UnifiedConfig, tokenizer: Tokenizer, autoencoder: Autoencoder, remember: bool = True
) -> tuple[Unified, Processor]:
    """A model to train over a text and an image tokenizer. The text tokenizer is given the special
    tokens that the model's images need."""
    depth = autoencoder.quantizer.depth
    sides = max((max(rows, columns * depth) for rows, columns in config.grids), default=0)
    add_image_tokens(tokenizer, config.image_objective == "masked", config.row_ends, sides)
    template = RoleTemplate(tokenizer)
    vocabulary = template.vocabulary(autoencoder.quantizer.codes)
    codec = UnifiedCodec(autoencoder, vocabulary, grids=config.grids)
    clips = Clips(config.video, codec)
    processor = Processor(template, codec, config.max_length, remember=remember, clips=clips)
    return Unified(config, vocabulary, codec.grid[1]), processor


def save(path: Path, model: Unified, processor: Processor) -> None:
    template, codec = processor.template, processor.codec
    assert isinstance(template, RoleTemplate)
    assert isinstance(codec, UnifiedCodec)
    files.write(path, model.config, model, template.tokenizer)
    autoencoders.save(path / "image_tokenizer", codec.autoencoder)


def load(path: Path) -> tuple[Unified, Processor]:
    config = files.read_config(path, UnifiedConfig)
    autoencoder, _ = autoencoders.load(path / "image_tokenizer")
    model, processor = build(config, files.read_tokenizer(path), autoencoder)
    files.read_weights(path, model)
    return model.eval(), processor
