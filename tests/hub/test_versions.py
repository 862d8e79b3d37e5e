"""What is saved is read by transformers 4 too.

CHIASM_TRANSFORMERS4: a Python with transformers 4 and torch; without it the names in the files are
tested, which are those that version 4 and published checkpoints have."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from chiasm.data.chat import CHATML
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.hub.versions import both_rotations
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.vision.config import TowerOptions
from chiasm.vision.pretrained import load_encoder, restore_encoder, save_encoder

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4}
PIXELS = {"image_size": 32, "patch_size": 8}
ENCODERS = {
    "clip": CLIPVisionModel(CLIPVisionConfig(**SHAPE, **PIXELS)),
    "siglip": SiglipVisionModel(SiglipVisionConfig(**SHAPE, **PIXELS)),
    "siglip2": Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, num_patches=16, patch_size=8)),
    "dinov2": Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **PIXELS)
    ),
}
BEFORE = {"clip": "vision_model.", "siglip": "vision_model.", "siglip2": "vision_model."}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An encoder of each family as a run saves it, beside what it was made from."""
    places = {}
    for name, model in ENCODERS.items():
        source = tmp_path_factory.mktemp(name)
        model.save_pretrained(source)
        tower = load_encoder(str(source), TowerOptions())
        places[name] = tmp_path_factory.mktemp(f"saved-{name}")
        save_encoder(places[name], tower)
    return places


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_its_published_names(folders, name):
    saved = load_file(folders[name] / "model.safetensors")
    own = type(ENCODERS[name]).from_pretrained(folders[name], output_loading_info=True)
    model, told = own
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    if name in BEFORE:
        assert set(saved) == {BEFORE[name] + key for key in model.state_dict()}
    for key, value in ENCODERS[name].state_dict().items():
        if key in model.state_dict():
            assert torch.equal(model.state_dict()[key], value)


def test_a_run_restores_its_encoder(folders):
    tower = load_encoder(str(folders["clip"]), TowerOptions())
    again = restore_encoder(folders["clip"], tower.config)
    for key, value in tower.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A saved run with an unusual rotation, and its language model's logits."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = CHATML
    source = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        **SHAPE, vocab_size=len(words), rope_theta=321.0, initializer_range=0.3, head_dim=8
    )
    LlamaForCausalLM(config).save_pretrained(source)
    words.save_pretrained(source)
    settings = MLLMConfig(language_model=str(source), lora=None, projector=MLPConfig(merge=1))
    vision = load_encoder(str(folders["siglip"]), settings.vision)
    model, processor = hub.build(settings, vision)
    place = tmp_path_factory.mktemp("run")
    hub.save(place, model, processor, settings)
    return place


def test_a_language_model_says_its_rotation_in_both_ways(run):
    told = json.loads((run / "language" / "config.json").read_text())
    assert told["rope_theta"] == told["rope_parameters"]["rope_theta"] == 321.0
    assert told["torch_dtype"] == told["dtype"] == "float32"
    told = json.loads((run / "language" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    hub.load(run)


def test_a_part_of_a_head_is_rotated_in_both_ways(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 321.0, "partial_rotary_factor": 0.5}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, vocab_size=9, rope_parameters=rope)).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = both_rotations(json.loads(file.read_text()))
    assert (told["rotary_emb_base"], told["rotary_pct"]) == (321.0, 0.5)
    file.write_text(json.dumps(told))
    ids = torch.arange(9)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)


READ = """
import sys, torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
kind, folder, out = sys.argv[1:]
load = getattr(transformers, kind).from_pretrained
model, told = load(folder, output_loading_info=True)
print(len(told["missing_keys"]), len(told["unexpected_keys"]))
if kind == "AutoModelForCausalLM":
    words = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "red?"}]
    ids = torch.tensor([words.apply_chat_template(asked, add_generation_prompt=True)])
    save_file({"ids": ids, "logits": model.eval()(ids).logits.detach()}, out)
"""


def read_by_version_4(kind, folder, out):
    other = os.environ.get("CHIASM_TRANSFORMERS4")
    if other is None:
        pytest.skip("CHIASM_TRANSFORMERS4 names no Python with transformers 4")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [other, "-c", READ, kind, str(folder), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.split()[-2:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_version_4_reads_an_encoder(folders, name, tmp_path):
    kind = type(ENCODERS[name]).__name__
    assert read_by_version_4(kind, folders[name], tmp_path / "out") == ["0", "0"]


@pytest.mark.slow
@torch.no_grad()
def test_version_4_reads_a_language_model(run, tmp_path):
    found = read_by_version_4("AutoModelForCausalLM", run / "language", tmp_path / "out")
    assert found == ["0", "0"]
    theirs = load_file(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(run / "language").eval()
    torch.testing.assert_close(model(theirs["ids"]).logits, theirs["logits"], atol=1e-5, rtol=1e-5)
    words = hub.load(run)[1].template.tokenizer
    asked = [{"role": "user", "content": "red?"}]
    ids = words.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert theirs["ids"][0].tolist() == ids
