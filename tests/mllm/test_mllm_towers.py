"""An MLLM whose encoder comes from transformers: built, trained, saved, loaded alone."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.hub import contrastive
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.jobs.mllm import _encoder
from chiasm.train.optim import set_trained
from chiasm.train.stage import Stage
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.pretrained import FusedTowers, Tower, load_encoder
from chiasm.vision.vit import ViT

TOWER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """name -> folder of a tiny random language model or encoder."""
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle user assistant"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    clip = CLIPVisionConfig(**TOWER, image_size=32, intermediate_size=32)
    naflex = Siglip2VisionConfig(**TOWER, intermediate_size=32, num_patches=16)
    llama = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    made = {
        "clip": CLIPVisionModel(clip),
        "dinov2": Dinov2Model(Dinov2Config(**TOWER, image_size=32)),
        "naflex": Siglip2VisionModel(naflex),
        "llama": LlamaForCausalLM(llama),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, model in made.items():
        model.save_pretrained(folders[name])
    words.save_pretrained(folders["llama"])
    stated = {"image_mean": [0.2] * 3, "image_std": [0.4] * 3, "max_num_patches": 16}
    (folders["naflex"] / "preprocessor_config.json").write_text(json.dumps(stated))
    return folders


def config_of(parts, names):
    encoder = "+".join(str(parts[name]) for name in names.split("+"))
    return MLLMConfig(encoder=encoder, language_model=str(parts["llama"]), lora=None)


def samples():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    image = Image(PIL.Image.fromarray(pixels))
    return [
        Sample((user(image, "what colour?"), assistant("red")), "a"),
        Sample((user("shape?"), assistant("a circle")), "b"),
        Sample((user(image, "is it", image, "?"), assistant("no")), "c"),
    ]


@pytest.mark.parametrize("names", ["clip", "naflex", "clip+dinov2"])
def test_trained_saved_and_loaded_without_its_sources(names, parts, tmp_path):
    mine = {name: shutil.copytree(folder, tmp_path / name) for name, folder in parts.items()}
    config = config_of(mine, names)
    model, processor = hub.build(config, load_encoder(config.encoder, config.vision))
    batch = pack([[processor.encode(s) for s in samples()]])
    set_trained(model, Stage("s", 1, lr={"vision": 1.0, "projector": 1.0}))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = model.loss(batch)
    before.sum.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert not torch.equal(model.loss(batch).sum, before.sum)
        expected = model.logits(model(batch))
        hub.save(tmp_path / "run", model, processor, config)
        for folder in mine.values():
            shutil.rmtree(folder)
        again, other = load(tmp_path / "run")
        assert again.vision.config == model.vision.config
        back = pack([[other.encode(s) for s in samples()]])
        assert torch.equal(batch.image_patches, back.image_patches)
        assert torch.equal(again.logits(again(back)), expected)
    shutil.rmtree(tmp_path / "run" / "vision")
    with pytest.raises(CheckpointError, match="no visual encoder") as error:
        load(tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trained", [("vision", "projector"), ("projector",)])
@pytest.mark.parametrize("names", ["clip", "naflex", "clip+dinov2"])
def test_cost_is_what_torch_counts(names, trained, parts):
    config = config_of(parts, names)
    model, processor = hub.build(config, load_encoder(config.encoder, config.vision))
    encoded = processor.encode(samples()[0])
    batch = pack([[dataclasses.replace(encoded, labels=np.full(len(encoded), 5))]])
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(trained, 1.0)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_what_an_encoder_is_given_as(parts, tmp_path):
    """A folder of ours, one of transformers, two joined; a misspelt path is no hub id."""
    vision = ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2)
    settings = ContrastiveConfig(vision, text_layers=1, vocabulary=290)
    words = train_bpe(["red circle"] * 4, 290)
    dual = DualEncoder(settings)
    contrastive.save(tmp_path / "ours", dual, contrastive.image_processor(settings, words))
    asked = []

    def given_or_prepared(given, name):
        asked.append(name)
        return tmp_path / (given or "ours")

    context = SimpleNamespace(given_or_prepared=given_or_prepared)

    def made(encoder):
        return type(_encoder(context, MLLMConfig(encoder=encoder)))

    assert made(None) is made(str(tmp_path / "ours")) is ViT
    assert asked == ["encoder"] * 2
    assert made(str(parts["clip"])) is Tower
    assert made(f"{parts['clip']}+{parts['dinov2']}") is FusedTowers
    with pytest.raises(CheckpointError, match="did you mean 'ours'"):
        made(str(tmp_path / "our"))
