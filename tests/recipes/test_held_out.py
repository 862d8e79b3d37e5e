"""Evaluation of both routes between training steps: right, harmless, kept, or refused."""

import json
import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from chiasm import cli
from chiasm.core.batch import pack
from chiasm.core.errors import ConfigError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.data.formats.messages import write_messages
from chiasm.data.load import load_samples
from chiasm.eval.runner import evaluate, replies_to
from chiasm.eval.task import QuestionTask
from chiasm.generation.generator import Generator
from chiasm.recipes.chat import responder
from chiasm.recipes.recipe import find
from chiasm.recipes.run import run
from chiasm.train.evaluation import EvalResult
from route_toys import make_parts, mllm_recipe, samples, unified_recipe

ROUTES = {"mllm": mllm_recipe, "unified": unified_recipe}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluations(folder):
    return [line for line in lines(folder) if "eval/seconds" in line]


def trained(folder):
    """All that training made: the weights, the optimiser, the averages, and what was logged."""
    newest = folder / "checkpoints" / "step-6"
    tensors = {f: load_file(newest / f"{f}.safetensors") for f in ("model", "optimizer", "ema")}
    timed = ("per_second", "seconds", "elapsed", "memory_gb", "mfu_measured", "data_wait")
    logged = [
        {k: v for k, v in line.items() if not k.endswith(timed)}
        for line in lines(folder)
        if "grad_norm" in line
    ]
    return tensors, logged


@pytest.mark.parametrize(
    ("route", "lowered"),
    [
        ("mllm", "none"),
        pytest.param("mllm", "bfloat16", marks=pytest.mark.slow),
        ("unified", "none"),
        pytest.param("unified", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_training_is_bit_for_bit_what_it_is_without_evaluation(parts, route, lowered, tmp_path):
    """With averages, dropout, frozen weights held in bfloat16, and gradient checkpointing."""
    fields = {"autocast": lowered, "ema": 0.9, "save_every": 6, "gradient_checkpointing": True}
    run(ROUTES[route](parts, **fields), tmp_path / "without", show=silent)
    few = {"evaluate_samples": 4, "evaluate_questions": 2, "evaluate_examples": 1}
    recipe = ROUTES[route](parts, evaluate_every=1, **few, **fields)
    run(recipe, tmp_path / "with", show=silent)
    assert len(evaluations(tmp_path / "with")) == 6
    (one, logged), (two, logged_too) = trained(tmp_path / "without"), trained(tmp_path / "with")
    assert logged == logged_too
    for name, tensors in one.items():
        assert tensors.keys() == two[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, two[name][key]), f"{name} {key}"


@pytest.mark.parametrize("route", ROUTES)
def test_metrics_are_those_of_the_saved_model(parts, route, tmp_path):
    """The last evaluation against the loss of every sample by itself, and against chiasm eval's
    way of asking, both with the model read from the disk."""
    folder = tmp_path / "run"
    recipe = ROUTES[route](parts, evaluate_every=3)
    last = recipe.stages[1]
    view = "chat" if route == "mllm" else "text_to_image"
    recipe = replace(
        recipe, stages=(recipe.stages[0], replace(last, objectives=view)), questions_per_image=0
    )
    run(recipe, folder, show=silent)
    found = evaluations(folder)
    assert [line["step"] for line in found] == [2, 5, 6], "every 3 steps of a stage and at its end"
    respond, held_out = responder(folder), load_samples(str(parts / "data"), "test")
    sums, counts = {}, {}
    for sample in held_out:
        sample = sample if view == "chat" else drawn(sample)
        batch = pack([[respond.processor.encode(sample)]])
        with torch.no_grad():
            loss = respond.model.loss(batch)
        everything = {"loss": (loss.sum.item(), loss.count), **loss.numbers()}
        for name, (value, count) in everything.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + count
    for name, value in sums.items():
        if counts[name]:
            assert found[-1][f"eval/{name}"] == pytest.approx(value / counts[name], rel=1e-4)
    task = QuestionTask("test", held_out)
    result = evaluate(task, respond, SamplingParams(max_tokens=32), show=silent)
    assert found[-1]["eval/accuracy"] == result.accuracy


def drawn(sample):
    from chiasm.core.sample import assistant, user

    turns = (user(sample.meta["caption"]), assistant(sample.images[0]))
    return replace(sample, turns=turns, independent=False)


def test_accuracy_counts_right_replies(parts, monkeypatch, tmp_path):
    """A generator that knows the answers to some of the questions."""
    reply = {"what color is it?": "red", "is it bright?": "yes"}

    def known(self, asked, sampling, edits=None):
        from chiasm.core.protocols import StreamChunk

        for number, sample in enumerate(asked):
            yield number, StreamChunk(reply[sample.turns[-1].text.strip()], finish="stop")

    monkeypatch.setattr(Generator, "__call__", known)
    run(mllm_recipe(parts, evaluate_every=4), tmp_path, show=silent)
    held_out = samples(6, 16)
    right = [
        a.text == reply[q.text]
        for s in held_out
        for q, a in zip(s.turns[::2], s.turns[1::2], strict=True)
    ]
    assert evaluations(tmp_path)[-1]["eval/accuracy"] == sum(right) / len(right)
    answers = [json.loads(line) for line in (tmp_path / "samples/step-6/answers.jsonl").open()]
    assert [a["correct"] for a in answers].count(1.0) == sum(right)
    assert {a["reference"] for a in answers} == {a.text for s in held_out for a in s.turns[1::2]}


def test_examples_are_kept_in_the_run(parts, tmp_path):
    run(unified_recipe(parts, evaluate_every=4, evaluate_examples=2), tmp_path, show=silent)
    places = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert places == ["step-2", "step-6"]
    held_out = samples(6, 16)
    for place in places:
        folder = tmp_path / "samples" / place
        rows = [json.loads(line) for line in (folder / "drawings.jsonl").open()]
        assert len(rows) == 2
        for row in rows:
            assert row["prompt"] in {s.meta["caption"] for s in held_out}
            assert PIL.Image.open(folder / row["file"]).size == (32, 32)
        asked = [json.loads(line) for line in (folder / "answers.jsonl").open()]
        assert len(asked) == 12
        shown = sorted(folder.glob("question-*.png"))
        assert len(shown) == 2
        for file in shown:
            of = asked[int(file.stem.removeprefix("question-"))]
            with PIL.Image.open(file) as one, PIL.Image.open(of["image"]) as two:
                assert np.array_equal(np.asarray(one), np.asarray(two))


def test_nothing_is_asked_or_drawn_where_none_is_wanted(parts, tmp_path):
    recipe = unified_recipe(
        parts,
        evaluate_every=4,
        evaluate_questions=0,
        evaluate_examples=0,
        evaluate_samples=1,
    )
    run(recipe, tmp_path, show=silent)
    assert not (tmp_path / "samples").exists()
    assert "eval/accuracy" not in evaluations(tmp_path)[-1]
    assert "eval/loss" in evaluations(tmp_path)[-1]


def test_masked_images_are_evaluated_with_the_same_masks_every_time(parts, tmp_path):
    """At a rate of 0 the weights stay, so the held-out loss does."""
    recipe = unified_recipe(
        parts,
        {"image_objective": "masked"},
        evaluate_every=1,
        evaluate_examples=1,
        evaluate_questions=2,
        lr={"embedding": 0.0},
    )
    run(recipe, tmp_path, show=silent)
    mixed = [line for line in evaluations(tmp_path) if line["stage"] == "mix"]
    assert len(mixed) == 4
    for name in ("eval/loss", "eval/image", "eval/text"):
        assert len({line[name] for line in mixed}) == 1


@pytest.mark.parametrize("route", ROUTES)
def test_the_best_checkpoint_of_each_stage_is_kept(parts, route, tmp_path):
    recipe = ROUTES[route](
        parts, evaluate_every=1, evaluate_questions=0, evaluate_examples=0, best_metric="-loss"
    )
    run(replace(recipe, keep_checkpoints=1), tmp_path, show=silent)
    best = {}
    for line in evaluations(tmp_path):
        before = best.get(line["stage"])
        if before is None or line["eval/loss"] < before["eval/loss"]:
            best[line["stage"]] = line
    found = {int(p.name[5:]): p for p in (tmp_path / "checkpoints").iterdir()}
    assert {line["step"] for line in best.values()} <= set(found)
    for line in best.values():
        state = json.loads((found[line["step"]] / "state.json").read_text())
        assert state["score"] == -line["eval/loss"]


def test_a_resumed_run_evaluates_as_the_whole_one(parts, tmp_path, monkeypatch):
    import shutil

    few = {"evaluate_questions": 3, "evaluate_examples": 1}
    recipe = replace(
        unified_recipe(parts, evaluate_every=2, save_every=1, **few), keep_checkpoints=9
    )
    run(recipe, tmp_path / "whole", show=silent)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/model.json").unlink()
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / f"cut/checkpoints/step-{step}")
    (tmp_path / "cut/samples/step-4/answers.jsonl").write_text("")
    (tmp_path / "cut/samples/step-99").mkdir()
    run(recipe, tmp_path / "cut", "yes", show=silent)

    def without_time(folder):
        return [
            {k: v for k, v in line.items() if k != "eval/seconds"} for line in evaluations(folder)
        ]

    assert without_time(tmp_path / "whole") == without_time(tmp_path / "cut")
    whole, cut = ((tmp_path / name / "samples") for name in ("whole", "cut"))
    assert {p.name for p in whole.iterdir()} == {p.name for p in cut.iterdir()}
    for file in whole.glob("*/*"):
        assert file.read_bytes() == (cut / file.parent.name / file.name).read_bytes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"best_metric": "-loss"}, "never evaluates; set evaluate_every"),
        ({"evaluate_every": 2, "best_metric": "acuracy"}, "did you mean 'accuracy'"),
        (
            {"evaluate_every": 2, "best_metric": "accuracy", "evaluate_questions": 0},
            "not evaluated",
        ),
        ({"evaluate_every": 2, "best_metric": "-image"}, "not evaluated"),
        (
            {"evaluate_every": 2, "objectives": "embed_align", "batch_tokens": None},
            "unknown|of the MLLM",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(parts, fields, words, tmp_path):
    recipe = unified_recipe(parts, **{"objectives": "chat", **fields})
    with pytest.raises(ConfigError, match=words):
        run(recipe, tmp_path / "run", show=silent)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_part_of_the_loss_can_be_the_best(parts, tmp_path):
    run(unified_recipe(parts, evaluate_every=2, best_metric="-image"), tmp_path, show=silent)
    (state,) = [
        json.loads((p / "state.json").read_text())
        for p in (tmp_path / "checkpoints").iterdir()
        if p.name == "step-2"
    ]
    assert state["score"] == -evaluations(tmp_path)[0]["eval/image"]


@pytest.mark.parametrize("name", ["mllm_smol", "unified_nano", "encoder", "tokenizer"])
def test_data_without_a_held_out_half_is_refused_before_parts_are_trained(name, tmp_path):
    (one,) = samples(1)
    write_messages([one], tmp_path / "data" / "train.jsonl")
    (tmp_path / "data" / "test.jsonl").write_text("")
    recipe = find(name)
    stages = (replace(recipe.stages[0], evaluate_every=5), *recipe.stages[1:])
    with pytest.raises(ConfigError, match="no held-out half"):
        run(
            replace(recipe, stages=stages, data=str(tmp_path / "data")),
            tmp_path / "run",
            show=silent,
        )
    assert not [p for p in (tmp_path / "run").iterdir() if p.is_dir()]


def test_an_encoder_without_captions_to_evaluate_on_is_refused(tmp_path):
    given = samples(2)
    write_messages(given, tmp_path / "data" / "train.jsonl")
    bare = [replace(s, meta={"caption": None}) for s in given]
    write_messages(bare, tmp_path / "data" / "test.jsonl")
    recipe = replace(find("encoder"), data=str(tmp_path / "data"))
    stage = replace(recipe.stages[0], evaluate_every=5)
    with pytest.raises(ConfigError, match=r"no held-out sample of .* can be evaluated"):
        run(replace(recipe, stages=(stage,)), tmp_path / "run", show=silent)
    write_messages(given, tmp_path / "data" / "test.jsonl")
    stage = replace(stage, best_metric="zero_shot")
    with pytest.raises(ConfigError, match="did you mean 'zero_shot_accuracy'"):
        run(replace(recipe, stages=(stage,)), tmp_path / "run", show=silent)


def test_bad_held_out_samples_are_counted_and_left_out(parts, tmp_path, capsys):
    data = tmp_path / "data"
    write_messages(samples(8), data / "train.jsonl")
    write_messages(samples(4, 16), data / "test.jsonl")
    missing = json.loads((data / "test.jsonl").read_text().splitlines()[0])
    bad = next(data.glob(f"**/{image_name(missing)}"))
    bad.write_bytes(b"no image")
    recipe = replace(unified_recipe(parts, evaluate_every=6), data=str(data))
    run(recipe, tmp_path / "run", show=silent)
    assert "1 held-out samples cannot be used" in capsys.readouterr().err
    answers = (tmp_path / "run/samples/step-6/answers.jsonl").read_text().splitlines()
    assert len(answers) == 6
    assert "not a readable image" in (tmp_path / "run/quarantine.jsonl").read_text()


def image_name(record):
    found = [text for text in json.dumps(record).split('"') if text.endswith(".png")]
    return found[0].rsplit("/", 1)[-1]


def test_results_add_up_in_one_order_and_leave_out_what_was_not_counted():
    parts = [(n, {"loss": (0.1 * n, 3), "empty": (0.0, 0)}) for n in range(5)]
    one = EvalResult(parts)
    two = EvalResult(parts[::-1])
    assert one.metrics == two.metrics == {"loss": pytest.approx(1.0 / 15)}
    assert EvalResult.of({"x": 0.3}).metrics == {"x": 0.3}
    assert math.isnan(EvalResult.of({"x": math.nan}).metrics["x"])


def test_typed_as_in_the_issue(parts, tmp_path):
    """chiasm train RECIPE --stages.1.evaluate_every N --stages.1.best_metric=-loss."""
    routes = {
        "mllm_smol": [
            "--model.encoder", parts / "encoder", "--model.language_model", parts / "language",
            "--model.freeze_first_layers", 0, "--model.chat_template", "chatml",
            *(w for s in range(3) for w in (f"--stages.{s}.steps", 2)), "--stages.0.batch_images",
            64, *(w for s in (1, 2) for w in (f"--stages.{s}.batch_tokens", 64)),
        ],
        "unified_nano": [
            "--model.tokenizer", parts / "tokenizer", "--model.hidden_size", 16,
            "--model.layers", 1,
            "--model.heads", 2, "--model.kv_heads", 2, "--model.intermediate_size", 24,
            *(w for s in range(7) for w in (f"--stages.{s}.steps", 2)),
            *(w for s in range(7) for w in (f"--stages.{s}.batch_tokens", 64)),
        ],
    }  # fmt: skip
    for name, settings in routes.items():
        words = ["train", name, "--data", parts / "data", "--out", tmp_path / name, *settings,
                 "--stages.1.evaluate_every", 1, "--stages.1.best_metric=-loss"]  # fmt: skip
        with suppress(SystemExit):  # the command's end, with a code that the files below belie
            cli.main([str(word) for word in words])
        found = evaluations(tmp_path / name)
        assert [line["step"] for line in found] == [3, 4]
        best = min(found, key=lambda line: line["eval/loss"])["step"]
        assert (tmp_path / name / "checkpoints" / f"step-{best}" / "COMMIT").exists()


def test_replies_come_with_the_failures_of_single_samples():
    def respond(asked, sampling):
        from chiasm.core.errors import DataError
        from chiasm.core.protocols import StreamChunk

        for number, sample in enumerate(asked):
            if sample.id == "s1":
                raise DataError("gone")
            yield number, StreamChunk(sample.id, finish="stop")

    found = replies_to(samples(3), respond, SamplingParams())
    assert [reply.text for reply in found] == ["s0", "", "s2"]
    assert found[1].error == "gone"
