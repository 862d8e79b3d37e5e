"""`chiasm serve` as a process: what it loads, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from serve_toys import KEY, drawing_toy, embedding_toy, reading_toy

from chiasm.core.errors import ConfigError, DataError
from chiasm.generation.generator import Generator
from chiasm.hub import autoencoder, contrastive, mllm, unified
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.mllm.model import MLLM
from chiasm.recipes.serve_command import serve_runs, served
from chiasm.vision.dual import OwnDual


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    toy, dual = drawing_toy(), embedding_toy()
    unified.save(folder / "drawing", toy.model, toy.processor)
    contrastive.save(folder / "encoder", dual.model, dual.processor)
    autoencoder.save(folder / "tokenizer", toy.processor.codec.autoencoder)
    return folder


def test_what_a_folder_holds_decides_what_it_serves(runs):
    assert isinstance(served(runs / "drawing"), Generator)
    assert isinstance(served(runs / "encoder"), OwnDual)
    with pytest.raises(DataError, match="neither talks nor embeds"):
        served(runs / "tokenizer")


def test_the_fastest_weights_are_those_measured(runs, tmp_path, monkeypatch, capsys):
    toy = reading_toy(tmp_path / "llama")
    config = MLLMConfig(
        language_model=str(tmp_path / "llama"), projector=MLPConfig(merge=2), lora=None
    )
    mllm.save(tmp_path / "reading", toy.model, toy.processor, config)
    monkeypatch.setattr(MLLM, "fastest_weights", lambda _model: "int8")
    made = []
    monkeypatch.setattr(MLLM, "new_decoder", lambda _model, weights: made.append(weights))
    served(tmp_path / "reading", "auto")
    served(tmp_path / "reading", "int4")
    served(tmp_path / "reading")
    assert made == ["int8", "int4", "fp32"]
    assert "reading: steps are fastest in int8 here" in capsys.readouterr().out
    assert isinstance(served(runs / "drawing", "auto"), Generator)  # has no such weights


def test_two_models_of_one_name_are_refused(runs):
    with pytest.raises(ConfigError, match="two models are called 'encoder'"):
        serve_runs((runs / "encoder", runs / "encoder"), "127.0.0.1", 0, KEY, 4, 4)
    with pytest.raises(ConfigError, match="at least one"):
        serve_runs((), "127.0.0.1", 0, KEY, 4, 4)


@pytest.mark.slow
def test_sigterm_finishes_what_was_begun(runs):
    environment = os.environ | {"CHIASM_API_KEY": KEY, "COLUMNS": "200"}
    command = [sys.executable, "-u", "-m", "chiasm", "serve", str(runs / "drawing"), "--port"]
    with socket.socket() as probe:  # a port that is free now
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [*command, str(port), "--shutdown-timeout", "300"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            client = openai.OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0
            )
            wait_for(client, process)
            stream = client.chat.completions.create(
                model="drawing",
                messages=[{"role": "user", "content": "red"}],
                stream=True,
                max_tokens=400,
                extra_body={"modalities": ["image"], "max_images": 8, "progress": True},
            )
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            chunks += stream
            assert chunks[-1].choices[0].finish_reason == "stop"
            images = sum(bool(getattr(c.choices[0].delta, "images", None)) for c in chunks)
            assert images >= 1  # begun before the signal, whole after it
            assert process.wait(120) in (0, -signal.SIGTERM)
            assert re.search(r"API +http://127.0.0.1:\d+/v1", process.stdout.read())
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
        finally:
            process.kill()


def wait_for(client, process):
    until = time.monotonic() + 300  # other work may have the machine
    while time.monotonic() < until and process.poll() is None:
        try:
            client.models.list()
            return
        except openai.APIConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not start: {process.poll()}")


def test_without_the_extra_the_error_names_it(runs, monkeypatch):
    from chiasm.core.errors import MissingExtraError

    for name in [n for n in sys.modules if n.startswith("chiasm.serve.listen")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"\.\[serve\]"):
        serve_runs((runs / "encoder",), "127.0.0.1", 0, KEY, 4, 4)


def test_the_package_carries_the_page():
    from chiasm.serve.app import STATIC

    assert {p.name for p in Path(STATIC).iterdir()} >= {"index.html", "app.js", "style.css"}
