"""llava15_7b and paligemma_3b at their published sizes, without a byte of weights."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from chiasm.core.config import from_dict, to_dict
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.recipes.recipe import Recipe, find
from chiasm.train.optim import set_trained
from chiasm.vision.config import TowerConfig
from chiasm.vision.pretrained import HALF, OPENAI, Tower


def llava(recipe):
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,  # the last of its 24 is not looked at
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    layer = recipe.model.vision.layer % 25
    tower = TowerConfig(
        recipe.model.encoder,
        "clip_vision_model",
        1024,
        layer,
        (layer,),
        False,
        336,
        14,
        None,
        3,
        *OPENAI,
    )
    words = LlamaConfig(vocab_size=32_000)  # the defaults are the 7B's
    return tower, CLIPVisionModel(CLIPVisionConfig(**shape)), LlamaForCausalLM(words)


def paligemma(recipe):
    shape = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "vision_use_head": False,
    }
    layer = recipe.model.vision.layer % 28
    tower = TowerConfig(
        recipe.model.encoder,
        "siglip_vision_model",
        1152,
        layer,
        (layer,),
        recipe.model.vision.norm,
        224,
        14,
        None,
        3,
        HALF,
        HALF,
    )
    words = GemmaConfig(
        vocab_size=256_000 + len(recipe.model.extra_special_tokens),
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
    )
    return tower, SiglipVisionModel(SiglipVisionConfig(**shape)), GemmaForCausalLM(words)


@pytest.mark.parametrize(
    ("name", "parts", "size", "projector", "tokens"),
    [
        ("llava15_7b", llava, 7.05e9, 20_979_712, 576),
        ("paligemma_3b", paligemma, 2.92e9, 2_361_344, 256),
    ],
)
def test_the_published_model_is_what_the_recipe_builds(name, parts, size, projector, tokens):
    recipe = find(name)
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    with torch.device("meta"):
        tower, encoder, language = parts(recipe)
        width = language.config.hidden_size
        made = build_projector(recipe.model.projector, tower.width, width, 0.1)
        model = MLLM(Tower(tower, encoder), made, language, 32_000)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.005)
    assert sum(p.numel() for p in made.parameters()) == projector
    codec = MLLMCodec(tower, made, 32_000, recipe.model.image_processing)
    assert codec.tokens((640, 480)) == tokens
    for stage in recipe.stages:
        set_trained(model, stage)
        trained = {
            group
            for group, part in model.groups().items()
            if any(p.requires_grad for p in part.parameters())
        }
        assert trained == set(stage.lr)


def test_batches_are_the_published_numbers_of_examples():
    """An image with about 100 words beside it for LLaVA's captions, 30 for VQAv2's questions."""
    align, tune = find("llava15_7b").stages
    assert align.batch_tokens * align.gradient_accumulation_steps == 256 * 680
    assert tune.batch_tokens * tune.gradient_accumulation_steps == 128 * 1024
    assert (align.steps * 256, tune.steps * 128) == pytest.approx((558_128, 665_298), rel=1e-3)
    (transfer,) = find("paligemma_3b").stages
    assert transfer.batch_tokens * transfer.gradient_accumulation_steps == 256 * 288
    assert transfer.steps * 256 == pytest.approx(647_871 * 10, rel=1e-4)
