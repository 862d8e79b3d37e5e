"""What `chiasm data inspect --labels` prints: the words that a recipe or a trained model learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Sample
from chiasm.data.chat import chat_template
from chiasm.data.clips import Clips
from chiasm.data.labels import lint
from chiasm.data.load import load_samples
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.data.text import train_bpe
from chiasm.hub import unified
from chiasm.hub.load import layout_of, load
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLLMConfig
from chiasm.mllm.language import load_tokenizer
from chiasm.mllm.projectors import build_projector
from chiasm.recipes.jobs.job import corpus
from chiasm.recipes.recipe import find
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, feature_width


def inspect_labels(path: str, model: str, show: int) -> None:
    """Lint the samples of a data set as the processor of `model` encodes them: a recipe's name, its
    file, or the folder of a run. Raises DataError if any sample teaches nothing."""
    bad: list[str] = []
    samples = load_samples(path, "train", lambda where, error: bad.append(str(error)))
    lint(samples, processor_of(model, samples), Console(), show, bad)


def processor_of(model: str, samples: Sequence[Sample]) -> Processor:
    """The processor of a run's folder, or the one a recipe would train with on these samples:
    without the weights, which no label depends on."""
    if (Path(model) / "model.json").exists() or layout_of(Path(model)) is not None:
        processor = load(model, "cpu")[1]
        if not isinstance(processor, Processor):
            raise ConfigError(f"{model}: learns from images alone; give an MLLM or unified model")
        return processor
    config = find(model).model
    if isinstance(config, UnifiedConfig):
        tokenizer = find("tokenizer").model
        assert isinstance(tokenizer, AutoencoderConfig)
        bpe = train_bpe(corpus(samples), config.text_vocabulary)
        return unified.build(config, bpe, Autoencoder(tokenizer))[1]
    if isinstance(config, MLLMConfig):
        return _mllm(config)
    raise ConfigError(f"recipe '{model}' learns from images alone; give mllm_smol or unified_nano")


def _mllm(config: MLLMConfig) -> Processor:
    """With our own encoder's shape: how many tokens an image takes is all that depends on it."""
    encoder = find("encoder").model
    assert isinstance(encoder, ContrastiveConfig)
    width = feature_width(encoder.vision)
    words = load_tokenizer(config.language_model)
    words.add_tokens(
        [t for t in config.extra_special_tokens if t not in words.get_vocab()], special_tokens=True
    )
    if config.chat_template is not None:
        words.chat_template = chat_template(config.chat_template)
    template = ChatTemplate(words, system=config.system, spoken=config.extra_special_tokens)
    with torch.device("meta"):
        projector = build_projector(config.projector, width, width, 1.0)
    codec = MLLMCodec(encoder.vision, projector, template.marker)
    clips = Clips(config.video, codec.frames)
    return Processor(template, codec, config.max_length, clips=clips, boxes=config.boxes)
