"""Recipes of published models: their shapes at full size, without a byte of weights."""

import PIL.Image
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from chiasm.core.config import from_dict, to_dict
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.images.split import words_needed
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.recipes.recipe import Recipe, find
from chiasm.train.optim import set_trained
from chiasm.vision.config import TowerConfig
from chiasm.vision.pretrained import HALF, Tower

IMAGE = 49152
NAMES = ("nanovlm_222m", "smolvlm_256m")


def on_paper(recipe):
    """The recipe's model with the published sizes of its parts, on the meta device."""
    options, side = recipe.model.vision, int(recipe.model.encoder.rsplit("-", 1)[1])
    assert (options.layer, options.norm) == (-1, True)
    tower = TowerConfig(
        source=recipe.model.encoder,
        family="siglip_vision_model",
        hidden=768,
        layers=12,
        chosen=(12,),
        norm=True,
        image_size=side,
        patch_size=16,
        max_patches=None,
        resample=3,
        mean=HALF,
        deviation=HALF,
    )
    vision = SiglipVisionConfig(image_size=side, patch_size=16, vision_use_head=False)
    words = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        encoder = Tower(tower, SiglipVisionModel(vision))
        projector = build_projector(recipe.model.projector, 768, 576, 1.0)
        return MLLM(encoder, projector, LlamaForCausalLM(words), IMAGE)


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_every_stage_is_there(name):
    recipe = find(name)
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    model = on_paper(recipe)
    for stage in recipe.stages:
        set_trained(model, stage)
        trained = {
            group
            for group, part in model.groups().items()
            if any(p.requires_grad for p in part.parameters())
        }
        assert trained == set(stage.lr)


def test_nanovlm_has_222_million_parameters_and_49_tokens_an_image():
    recipe = find("nanovlm_222m")
    model = on_paper(recipe)
    assert millions(model) == pytest.approx(222, abs=0.5)
    codec = MLLMCodec(model.vision.config, model.projector, IMAGE, recipe.model.image_processing)
    assert codec.tokens((1000, 300)) == 49
    (stage,) = recipe.stages
    assert stage.batch_tokens * stage.gradient_accumulation_steps == 256 * 128


def test_smolvlm_has_256_million_parameters_and_64_tokens_a_tile():
    """The published model counts its head apart from the embedding."""
    recipe = find("smolvlm_256m")
    model = on_paper(recipe)
    head = model.head.weight.numel() / 1e6
    assert millions(model) + head == pytest.approx(256.3, abs=0.5)
    images = recipe.model.image_processing
    words = [w for w in words_needed(images, 512) if w.startswith("<row_")]
    assert len(words) == 16

    def ids(text):
        """One for a word in angles or a new line."""
        pieces = text.replace(">", ">\0").replace("\n", "\n\0").split("\0")[:-1]
        return [IMAGE if piece == "<image>" else 1 for piece in pieces]

    codec = MLLMCodec(model.vision.config, model.projector, IMAGE, images, ids)
    slot = codec.mode.slot((1600, 1200))  # 4 x 3 tiles and the whole
    assert slot.tiles == 13
    assert (slot.input_ids == IMAGE).sum() == 13 * 64
    assert slot.grid == (32, 32)
    assert len(codec.mode.tiles(PIL.Image.new("RGB", (160, 120)))) == 13
