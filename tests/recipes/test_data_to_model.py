"""What people have, all the way: inspect, import, train 20 steps, evaluate, on both routes."""

import json
import random
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm import cli
from chiasm.data.load import load_samples
from chiasm.data.text import train_bpe
from shared_data import SHARED

TRAINED = ("photos-captions", "charts-qa", "tables-qa", "receipts", "screenshots")
STEPS, ASKED = 20, 6
WORDS = ("rain", "hill", "river", "slow", "green", "report", "total", "amount", "north", "bread")


def runs(*arguments: object) -> None:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"{arguments}: exit code {stop.code}")


def flags(**settings: object) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key.replace('__', '.')}", str(value))
    ]


def stages(count: int, **settings: object) -> list[str]:
    return [
        word
        for number in range(count)
        for key, value in settings.items()
        for word in (f"--stages.{number}.{key}", str(value))
    ]


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    """A language model of two layers with words of its own."""
    folder = tmp_path_factory.mktemp("language")
    bpe = train_bpe([" ".join(WORDS), "what is the total? describe the image in a few words"], 400)
    words = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """An encoder and an image tokenizer, hardly trained."""
    folder = tmp_path_factory.mktemp("parts")
    data = SHARED / "photos-captions"
    runs("train", "encoder", "--data", data, "--out", folder / "encoder",
         *flags(model__vision__layers=1), *stages(1, steps=2, batch_images=8))  # fmt: skip
    runs("train", "tokenizer", "--data", data, "--out", folder / "tokenizer",
         *flags(model__decoder_channels=64, model__decoder_blocks=1),
         *stages(1, steps=2, batch_images=4))  # fmt: skip
    return {"encoder": folder / "encoder", "tokenizer": folder / "tokenizer"}


def both_routes(
    data: Path, out: Path, language: Path, parts: dict[str, Path], beside: str = ""
) -> None:
    """beside: what is trained on together with the data."""
    trained = f"{data}{beside and ','}{beside}"
    # The first stages of the unified recipe want captions, which a set of clips has not.
    early = stages(4, source_weights=json.dumps({Path(beside).name: 1})) if beside else []
    runs("train", "mllm_smol", "--data", trained, "--out", out / "mllm",
         *flags(model__language=language, model__encoder=parts["encoder"], model__frozen_layers=0,
                model__chat_template="chatml", model__max_length=6000),
         *stages(3, steps=STEPS), *stages(1, batch_images=8), "--stages.1.batch_tokens", 256,
         "--stages.2.batch_tokens", 256)  # fmt: skip
    runs("train", "unified_nano", "--data", trained, "--out", out / "unified",
         *flags(model__width=32, model__layers=1, model__heads=2, model__kv_heads=2,
                model__hidden=64, model__max_length=8000, model__tokenizer=parts["tokenizer"]),
         *stages(7, steps=STEPS, batch_tokens=256), *early)  # fmt: skip
    for route in ("mllm", "unified"):
        runs("eval", out / route, "--task", data, "--limit", ASKED)
        (found,) = (out / route).glob("predictions-*.jsonl")
        assert len(found.read_text().splitlines()) == min(
            ASKED, len(load_samples(str(data), "test"))
        )
        metrics = (out / route / "metrics.jsonl").read_text().splitlines()
        assert all(json.loads(line)["loss"] < 100 for line in metrics if "loss" in json.loads(line))


def looked_over(source: Path, out: Path) -> Path:
    """Inspected and imported."""
    runs("data", "inspect", source, "-o", out / "page.html")
    said = json.loads((out / "page.json").read_text())
    assert said["unusable"] == []
    runs("data", "import", source, "-o", out / "set")
    for split, count in said["samples"].items():
        lines = (out / "set" / f"{split}.jsonl").read_text().splitlines()
        assert len(lines) == count
    return out / "set"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is absent")
@pytest.mark.parametrize("name", TRAINED)
def test_every_set_is_inspected_imported_trained_and_evaluated(name, language, parts, tmp_path):
    data = looked_over(SHARED / name, tmp_path)
    both_routes(data, tmp_path, language, parts)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is absent")
def test_fifty_pdfs_become_two_models(language, parts, tmp_path):
    pytest.importorskip("pypdfium2")
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    draw = random.Random(0)
    (tmp_path / "pdfs").mkdir()
    for number in range(50):
        file = tmp_path / "pdfs" / f"{number}.pdf"
        with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(file) as pages:
            page = Figure(figsize=(4, 4))
            for line in range(5):
                words = " ".join(draw.choices(WORDS, k=5))
                page.text(0.1, 0.85 - line * 0.15, words, fontsize=11, va="top")
            pages.savefig(page)
    runs("data", "pdf", tmp_path / "pdfs", "-o", tmp_path / "made", "--side", 256)
    data = looked_over(tmp_path / "made", tmp_path)
    both_routes(data, tmp_path, language, parts)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is absent")
@pytest.mark.parametrize("name", ["cifar10-zeroshot", "video-clips"])
def test_sets_of_one_half_are_divided(name, language, parts, tmp_path):
    """Small images and clips come as a test half alone; here they are trained on as well."""
    data = looked_over(SHARED / name, tmp_path)
    (data / "test.jsonl").rename(data / "all.jsonl")
    beside = str(SHARED / "screenshots") if name == "video-clips" else ""
    both_routes(data, tmp_path, language, parts, beside)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is absent")
def test_a_mixture_trains_a_model_that_is_asked_about_another_set(language, parts, tmp_path):
    mixture = f"{SHARED / 'screenshots'}=1,{SHARED / 'tables-qa'}=3"
    runs("train", "mllm_smol", "--data", mixture, "--out", tmp_path,
         *flags(model__language=language, model__encoder=parts["encoder"], model__frozen_layers=0,
                model__chat_template="chatml", model__max_length=6000),
         *stages(3, steps=STEPS), *stages(1, batch_images=8), "--stages.1.batch_tokens", 256,
         "--stages.2.batch_tokens", 256,
         "--stages.2.source_weights", '{"screenshots": 1}')  # fmt: skip
    runs("eval", tmp_path, "--task", SHARED / "cifar10-zeroshot", "--limit", ASKED)
