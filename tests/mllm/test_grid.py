"""Every encoder with every projector with every language model: forward, backward, an overfit.

Two images are asked the same question and have different answers, so the loss goes to zero only
where the images reach the language model.
"""

import json
from itertools import product
from typing import get_args

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from chiasm.core.batch import pack
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.mllm.config import (
    AveragePoolConfig,
    CAbstractorConfig,
    CrossAttentionConfig,
    CustomProjector,
    DAbstractorConfig,
    DeepStackConfig,
    IdentityConfig,
    LinearConfig,
    MLLMConfig,
    MLPConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    ProjectorConfig,
    QFormerConfig,
    ResidualMLPConfig,
    TokenMergeConfig,
)
from chiasm.train.optim import set_trained
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions, ViTConfig
from chiasm.vision.pretrained import load_encoder
from chiasm.vision.vit import ViT

WIDTH = 32
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": WIDTH**-0.5,
}
TOWER = {**SHAPE, "patch_size": 8}
OURS = ViTConfig(image_size=32, patch_size=8, width=WIDTH, layers=2, heads=2)
PROJECTORS = {
    "mlp": MLPConfig(merge=1),
    "identity": IdentityConfig(),
    "linear": LinearConfig(),
    "linear-zero": LinearConfig(zero_init=True),
    "residual": ResidualMLPConfig(blocks=1, merge=2),
    "shuffle": PixelShuffleConfig(factor=2),
    "pool": AveragePoolConfig(),
    "perceiver": PerceiverConfig(latents=4, layers=1, heads=2),
    "qformer": QFormerConfig(queries=4, layers=1, width=0, heads=2),
    "c-abstractor": CAbstractorConfig(side=2, blocks=1),
    "d-abstractor": DAbstractorConfig(side=2, layers=1, heads=2, points=2),
    "token-merge": TokenMergeConfig(tokens=4),
    "deepstack": DeepStackConfig(levels=2, each=MLPConfig(merge=2)),
    "cross": CrossAttentionConfig((0, 1), 2, PerceiverConfig(latents=4, layers=1, heads=2)),
}
ENCODERS = ("clip", "siglip", "naflex", "dinov2", "ours")
LANGUAGES = ("llama", "gpt2", "gemma", "qwen")
RATE = 0.015
GRID = list(product(ENCODERS, PROJECTORS, LANGUAGES))


def covering():
    """Rows of the grid in which every two values of different kinds meet: language models along a
    Latin square, as there are fewer of them than of the others."""
    return [
        (encoder, projector, LANGUAGES[(e + p) % len(LANGUAGES)])
        for (e, encoder), (p, projector) in product(enumerate(ENCODERS), enumerate(PROJECTORS))
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of a tiny random encoder or language model."""
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["night or day ?ab"] * 4, 290),
        eos_token="<|im_end|>",
    )
    # Two targets a reply: its letter and the end.
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    decoder = {**SHAPE, "vocab_size": len(words), "max_position_embeddings": 128}
    grouped = {**decoder, "num_key_value_heads": 1, "tie_word_embeddings": True}
    sliding = {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2}
    gpt2 = {
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "initializer_range": WIDTH**-0.5,
    }
    made = {
        "clip": CLIPVisionModel(CLIPVisionConfig(**TOWER, image_size=32)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=32)),
        "naflex": Siglip2VisionModel(Siglip2VisionConfig(**TOWER, num_patches=16)),
        "dinov2": Dinov2Model(Dinov2Config(**TOWER, image_size=32)),
        "llama": LlamaForCausalLM(LlamaConfig(**grouped)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **gpt2)),
        "gemma": Gemma3ForCausalLM(Gemma3TextConfig(**grouped, **sliding)),
        "qwen": Qwen3ForCausalLM(Qwen3Config(**grouped, head_dim=8)),
    }
    places = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, model in made.items():
        model.save_pretrained(places[name])
        if name in LANGUAGES:
            words.save_pretrained(places[name])
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_num_patches": 16}
    (places["naflex"] / "preprocessor_config.json").write_text(json.dumps(stated))
    return places


def samples(swapped=False):
    # Night and day: what a random encoder can tell apart before it has learned anything.
    noise = np.random.default_rng(0).integers(0, 40, (2, 32, 24, 3), np.uint8)
    images = [Image(PIL.Image.fromarray(pixels)) for pixels in (noise[0], 255 - noise[1])]
    replies = ["b", "a"] if swapped else ["a", "b"]
    return [
        Sample((user(image, "?"), assistant(reply)), reply)
        for image, reply in zip(images, replies, strict=True)
    ]


def build(folders, encoder, projector, language):
    torch.manual_seed(1)
    layers = (1, 2) if projector == "deepstack" else -1
    if encoder == "ours":
        chosen = layers if isinstance(layers, tuple) else ()
        vision = ViT(ViTConfig(**{**vars(OURS), "chosen": chosen}))
    else:
        vision = load_encoder(str(folders[encoder]), TowerOptions(layer=layers))
    config = MLLMConfig(
        language_model=str(folders[language]), projector=PROJECTORS[projector], lora=None
    )
    return hub.build(config, vision)


def batch_of(processor, **settings):
    return pack([[processor.encode(sample) for sample in samples(**settings)]])


def mean_loss(model, batch):
    loss = model.loss(batch)
    return loss.sum / loss.count


def test_the_grid_is_whole():
    """No projector is missing, and the covering lets every two values meet."""
    ours = set(get_args(ProjectorConfig)) - {CustomProjector}  # which stands for users' own
    assert {type(config) for config in PROJECTORS.values()} == ours
    rows = covering()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        met = {(row[one], row[other]) for row in rows}
        assert met == {(row[one], row[other]) for row in GRID}


CLOSED = ("linear-zero", "cross")
"""Projectors that let nothing through before their first update."""


@pytest.mark.parametrize("encoder", ENCODERS)
def test_forward_and_backward_where_every_two_meet(folders, encoder):
    for row in covering():
        if row[0] != encoder:
            continue
        model, processor = build(folders, *row)
        set_trained(model, Stage("all", 1, lr=dict.fromkeys(model.groups(), 1.0)))
        mean_loss(model, batch_of(processor)).backward()
        for name, part in model.groups().items():
            if not any(p.requires_grad for p in part.parameters()):
                assert (name, row[1]) == ("projector", "identity")
                continue
            largest = max(
                p.grad.abs().max().item() for p in part.parameters() if p.grad is not None
            )
            assert np.isfinite(largest), row
            assert (largest > 0) == (name != "vision" or row[1] not in CLOSED), (row, name)


@pytest.mark.parametrize("row", covering()[::5], ids="-".join)
def test_overfit_where_every_one_takes_part(folders, row):
    overfit(folders, *row)


@pytest.mark.slow
@pytest.mark.parametrize("row", GRID, ids="-".join)
def test_overfit(folders, row):
    overfit(folders, *row)


def overfit(folders, *row):
    """20 steps to near nothing (who cannot tell the images apart stays above ln 2 / 2 = 0.35),
    for the right images only."""
    model, processor = build(folders, *row)
    batch = batch_of(processor)
    set_trained(model, Stage("all", 20, lr=dict.fromkeys(model.groups(), 1.0)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.8, 0.9), weight_decay=0.0)
    model.train()
    for step in range(20):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 3, 1, (21 - step) / 8)
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert mean_loss(model, batch).item() < 0.1
        assert mean_loss(model, batch_of(processor, swapped=True)).item() > 1.0
