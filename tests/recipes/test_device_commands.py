"""Every command that computes does so on the device that it is told, and says what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_recipes_cli import TINY_TOKENIZER, TINY_UNIFIED, fails, needs_wheels, runs

import pretend_device
from chiasm.hub.load import load
from route_toys import make_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def on_device(pretend, monkeypatch):
    """Run a command with --device pretend; it must have computed there."""
    monkeypatch.setenv("CHIASM_DEVICE", "cpu")  # put back afterwards; the flag wins

    def run(*arguments):
        before = pretend_device.operations
        runs(*arguments, "--device", "pretend")
        assert pretend_device.operations > before + 50, arguments[0]

    return run


def quick(stages: int, batch: int, unit: str = "tokens") -> list[str]:
    return [
        word
        for stage in range(stages)
        for word in (f"--stages.{stage}.steps", "2", f"--stages.{stage}.batch_{unit}", str(batch))
    ]


def small_mllm(parts: Path) -> list[str]:
    return [
        *("--data", str(parts / "data"), "--model.encoder", str(parts / "encoder")),
        *("--model.language_model", str(parts / "language"), "--model.chat_template", "chatml"),
        *("--model.system", "", "--model.max_length", "256", "--model.freeze_first_layers", "0"),
    ]


def test_commands_of_the_mllm(parts, on_device, tmp_path, capsys):
    run, data = tmp_path / "mllm", parts / "data"
    rates = [
        word
        for stage in (0, 1, 2)
        for word in (f"--stages.{stage}.lr", '{"projector": 1e-3, "lora": 1e-3}')
    ]
    lora = ["--model.lora", '{"rank": 2, "merged": false}', *rates, *quick(3, 128)]
    lora = [word.replace("0.batch_tokens", "0.batch_images") for word in lora]
    on_device("train", "mllm_smol", "--out", run, *small_mllm(parts), *lora)
    on_device("eval", run, "--task", data, "--max-tokens", "4", "--ablate", "shuffled")
    assert "accuracy" in capsys.readouterr().out
    image = next((data / "images").iterdir())
    on_device("chat", run, image, "what color is it?", "--max-tokens", "4")
    runs("merge-lora", run, tmp_path / "merged", "--device", "pretend")
    on_device("eval", tmp_path / "merged", "--task", data, "--by-likelihood")
    on_device("compare", run, tmp_path / "merged", "--task", data, "--out", tmp_path / "c.html")


def test_commands_of_the_parts(parts, on_device, tmp_path, capsys):
    data = str(parts / "data")
    encoder = ["--model.vision.layers", "1", "--model.text_layers", "1", *quick(1, 4, "images")]
    on_device("train", "encoder", "--data", data, "--out", tmp_path / "encoder", *encoder)
    on_device(
        "train", "tokenizer", "--data", data, "--out", tmp_path / "tokenizer", *TINY_TOKENIZER
    )
    on_device("eval", parts / "encoder", "--task", data)
    on_device("eval", parts / "tokenizer", "--task", data, "--metric", "reconstruction")
    assert "PSNR" in capsys.readouterr().out
    on_device("precompute", parts / "tokenizer", tmp_path / "codes", "--data", data)
    on_device("precompute", parts / "encoder", tmp_path / "features", "--data", data)
    on_device(
        *("sweep", "stability", tmp_path / "sweep", "--widths", "16", "--layers", "1"),
        *("--seeds", "1", "--steps", "4", "--rows", "2", "--rates", "1e-3"),
    )


def test_commands_of_the_unified_route(parts, on_device, tmp_path, monkeypatch):
    run, data = tmp_path / "unified", parts / "data"
    tokenizer = ["--model.tokenizer", str(parts / "tokenizer"), "--data", str(data)]
    on_device("train", "unified_nano", "--out", run, *tokenizer, *TINY_UNIFIED)
    on_device("generate", run, "a red square", "-o", tmp_path / "a.png", "--best-of", "2")
    on_device("eval", run, "--task", data, "--max-tokens", "4", "--limit", "4")
    on_device(
        "eval", run, "--task", data, "--metric", "drawing", "--limit", "2", "--num-images", "1"
    )
    on_device("export", run, tmp_path / "exported")
    served = {}

    def listen(server, _address):
        served.update(server.models)

    monkeypatch.setattr("chiasm.serve.listen.listen", listen)
    runs("serve", run, parts / "encoder", "--device", "pretend")
    assert served


def test_the_device_of_the_environment_is_the_default(parts, pretend, monkeypatch):
    monkeypatch.setenv("CHIASM_DEVICE", "pretend")
    model, _ = load(parts / "encoder")
    assert next(model.parameters()).device == pretend
    model, _ = load(parts / "encoder", "cpu")
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("command", ["eval", "chat", "serve", "train"])
def test_a_device_that_is_not_there_is_one_line(command, parts, capsys, monkeypatch):
    monkeypatch.setenv("CHIASM_DEVICE", "cpu")
    target = "encoder" if command == "train" else parts / "encoder"
    line = fails(capsys, command, target, "--device", "cuda")
    assert "this torch has no CUDA" in line
    assert "TORCH_BACKEND" in line
    assert "no device of this torch" in fails(capsys, command, target, "--device", "gpu")
    assert "number 7" in fails(capsys, command, target, "--device", "pretend:7")


@pytest.mark.slow
@needs_wheels
def test_the_fast_demo_on_a_device(tmp_path):
    """Its lanes are processes of their own: the device is registered in each as Python starts."""
    tests = Path(__file__).parent.parent
    (tmp_path / "sitecustomize.py").write_text(
        "import pretend_device\nkept = pretend_device.installed()\nkept.__enter__()\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(tests), os.environ.get("PYTHONPATH", "")])
    demo = ["demo", "--fast", "--device", "pretend", "--out", str(tmp_path / "demo")]
    done = subprocess.run(
        [sys.executable, "-m", "chiasm", *demo],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["settings"]["fast"]
