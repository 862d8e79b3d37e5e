"""Models that run by their own class of transformers, and folders that are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import chiasm
from chiasm.cli import main
from chiasm.core.errors import CheckpointError, ConfigError, DataError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.hub.generic import GenericVLM
from chiasm.hub.load import load
from chiasm.recipes.serve_command import served
from generic_toys import TYPES, write
from route_toys import make_parts
from stock_toys import noise
from stock_toys import write as write_stock

FAST = ("qwen2_vl", "gemma3", "llava_onevision")
ONE = "what colour is it?"


@pytest.fixture(
    scope="module",
    params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TYPES],
)
def both(request, tmp_path_factory):
    """(folder, transformers' model, its processor, the same as a VLM)"""
    folder = tmp_path_factory.mktemp(request.param)
    _, processor = write(request.param, folder)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return folder, theirs, processor, chiasm.load(folder, "cpu")


def asked():
    return [
        Sample((user(Image(noise(40, 33)), ONE),)),
        Sample((user("is it red?"),)),
        Sample((user(Image(noise(30, 61, 1)), "is it red or blue? what is it?"),)),
        Sample((user(Image(noise(28, 28, 2)), ONE), assistant("red"), user("and then?"))),
    ]


def their_reply(model, processor, sample, count):
    said = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": p.load()}
                if isinstance(p, Image)
                else {"type": "text", "text": p.text}
                for p in turn.content
            ],
        }
        for turn in sample.turns
    ]
    inputs = processor.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True)


def test_replies_are_those_of_transformers_in_any_batch(both):
    _, theirs, processor, vlm = both
    assert isinstance(vlm.model, GenericVLM)
    expected = [their_reply(theirs, processor, sample, 6) for sample in asked()]
    found = [""] * len(expected)
    for i, piece in vlm.generator(asked(), SamplingParams(max_tokens=6)):
        found[i] += piece.text
        assert piece.finish in ("stop", "length")
    assert found == expected
    assert vlm.ask(noise(40, 33), ONE, max_tokens=6) == expected[0]


def test_what_is_saved_its_class_loads(both, tmp_path):
    folder, _, _, vlm = both
    vlm.save(tmp_path / "out")
    one = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    two = {k: v for f in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(f).items()}
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = chiasm.load(tmp_path / "out", "cpu")
    image = noise(50, 20)
    assert again.ask(image, ONE, max_tokens=6) == vlm.ask(image, ONE, max_tokens=6)


def test_the_commands_take_it(tmp_path, capsys):
    folder, parts = tmp_path / "gemma3", make_parts(tmp_path)
    write("gemma3", folder)
    noise(40, 30).save(tmp_path / "a.png")
    main(["chat", str(folder), str(tmp_path / "a.png"), ONE, "--max-tokens", "3"])
    assert "by its own class, Gemma3ForConditionalGeneration" in capsys.readouterr().err
    result = chiasm.evaluate(folder, parts / "data", limit=6, max_tokens=2, progress=False)
    assert result.n == 6
    assert not result.errors
    with pytest.raises(ConfigError, match=r"own class, Gemma3.* not served here"):
        served(folder)
    with pytest.raises(CheckpointError, match=r"by its own class.* not trained here"):
        chiasm.train("mllm_smol", init=folder, data=parts / "data", out=tmp_path / "run")
    with pytest.raises(DataError, match="the text spells the control token <boi>"):
        chiasm.load(folder, "cpu").ask(None, "<boi> what?")


def edited(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def no_template(folder):
    write("gemma3", folder)
    (folder / "chat_template.jinja").unlink()


def no_processor(folder):
    write("gemma3", folder)
    for file in folder.glob("*processor*.json"):
        file.unlink()


def quantised(method):
    def make(folder):
        write_stock("llava-clip", folder)
        edited(folder, quantization_config={"quant_method": method, "bits": 4})

    return make


def remote_code(folder):
    write_stock("llava-clip", folder)
    edited(folder, auto_map={"AutoModel": "modeling_x.X"})


def missing_shard(folder):
    model, _ = write_stock("llava-clip", folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()


def another_architecture(folder):
    write_stock("llava-clip", folder)
    edited(folder, model_type="vipllava", architectures=["VipLlavaForConditionalGeneration"])


def no_weights(folder):
    write_stock("llava-clip", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD = {
    "awq": (quantised("awq"), r"quantised \(awq\), which is not read.* give the original"),
    "gptq": (quantised("gptq"), r"quantised \(gptq\)"),
    "bitsandbytes": (quantised("bitsandbytes"), r"quantised \(bitsandbytes\)"),
    "fp8": (quantised("fp8"), r"quantised \(fp8\)"),
    "remote code": (remote_code, r"auto_map\), which is never run; give a version"),
    "missing shard": (missing_shard, r"shards are missing, first model-00001.*hf download"),
    "architecture": (another_architecture, r"weights, first .*; is it complete\?|cannot load it"),
    "no weights": (no_weights, r"no \.safetensors file; .* convert a \.bin"),
    "no template": (no_template, r"no chat template.* put the one of its instruction-tuned"),
    "no processor": (no_processor, r"processor .*; fetch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_name_the_remedy_in_one_line(name, tmp_path):
    make, said = BAD[name]
    make(tmp_path)
    with pytest.raises(CheckpointError, match=said) as refused:
        load(tmp_path, "cpu")
    assert "\n" not in str(refused.value)
