"""Recipes of both routes at toy size: random parts, sixteen images with questions and captions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.text import train_bpe
from chiasm.hub import autoencoder, contrastive
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder

COLORS = ("red", "green", "blue", "grey")


def samples(count: int, start: int = 0) -> list[Sample]:
    """Two independent questions about a noisy image of one color, and a caption."""
    made = []
    for n in range(start, start + count):
        random, color = np.random.default_rng(n), COLORS[n % 4]
        pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[..., n % 3] += 180
        turns = (
            user(Image(PIL.Image.fromarray(pixels)), "what color is it?"),
            assistant(color),
            user("is it bright?"),
            assistant("yes" if n % 2 else "no"),
        )
        caption = f"a {color} square number {n}"
        made.append(Sample(turns, f"s{n}", independent=True, meta={"caption": caption}))
    return made


def make_parts(folder: Path) -> Path:
    """data/ with train.jsonl and test.jsonl, encoder/, tokenizer/ and language/ in a folder."""
    torch.manual_seed(0)
    write_messages(samples(16), folder / "data" / "train.jsonl")
    write_messages(samples(6, 16), folder / "data" / "test.jsonl")
    texts = ["what color is it? is it bright? a red square number 1 green blue grey yes no"]
    dual = ContrastiveConfig(
        ViTConfig(image_size=32, patch_size=16, width=16, layers=1, heads=2),
        embedding=16, text_width=16, text_layers=1, vocabulary=300,
    )  # fmt: skip
    contrastive.save(
        folder / "encoder",
        DualEncoder(dual),
        contrastive.image_processor(dual, train_bpe(texts, 300)),
    )
    tokens = AutoencoderConfig(image_size=32, decoder_channels=64, decoder_blocks=1)
    autoencoder.save(folder / "tokenizer", Autoencoder(tokens))
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts, 300),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.save_pretrained(folder / "language")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "language")
    return folder


def mllm_recipe(folder: Path, **stage) -> Recipe:
    """Align, then tune with the first layer frozen; both stages with these fields."""
    common = {"log_every": 1, "autocast": "none", "feature_cache": 0.0} | stage
    model = MLLMConfig(
        encoder=str(folder / "encoder"),
        language_model=str(folder / "language"),
        lora=None,
        freeze_first_layers=1,
        chat_template="chatml",
        system="",
    )
    align = Stage("align", 2, {"vision": 1e-3, "projector": 1e-3}, "embed_align", batch_images=4)
    tune = Stage("tune", 4, {"projector": 1e-3, "language_model": 1e-3}, "chat", batch_tokens=128)
    stages = tuple(replace(each, **common) for each in (align, tune))
    return Recipe(model, stages, data=str(folder / "data"), questions_per_image=1)


def unified_recipe(folder: Path, model: dict | None = None, **stage) -> Recipe:
    """Two stages with these fields, with dropout unless the model says otherwise."""
    common = {"log_every": 1, "autocast": "none", "batch_tokens": 256} | stage
    config = UnifiedConfig(
        **{
            "tokenizer": str(folder / "tokenizer"),
            "text_vocabulary": 300,
            "hidden_size": 16,
            "layers": 2,
            "heads": 2,
            "kv_heads": 2,
            "intermediate_size": 24,
            "dropout": 0.1,
            **(model or {}),
        }
    )
    rates = {"embedding": 1e-3, "transformer": 1e-3}
    stages = (
        Stage("look", 2, {"transformer": 1e-3}, "itm+text_to_image"),
        Stage("mix", 4, rates, "chat+text_to_image"),
    )
    stages = tuple(replace(each, **common) for each in stages)
    return Recipe(config, stages, data=str(folder / "data"), questions_per_image=1)
