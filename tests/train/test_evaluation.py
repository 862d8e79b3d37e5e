"""Evaluation on several ranks, its interruption, and where its examples go."""

import json
import os
import signal
import sys
import types

import numpy as np
import PIL.Image
import pytest
import torch
from test_ranks import PARTS, SPLIT, WHOLE, together
from train_toys import ToyStream, toy

from chiasm.core.errors import ConfigError, InterruptedRunError
from chiasm.core.progress import silent
from chiasm.recipes.run import run
from chiasm.train import checkpoint
from chiasm.train.evaluation import (
    Answer,
    Drawing,
    EvalContext,
    EvalResult,
    Examples,
    gather,
    rng_preserved,
)
from chiasm.train.loggers import open_sinks
from chiasm.train.loop import train
from chiasm.train.parallel import current
from chiasm.train.stage import Stage
from route_toys import make_parts, mllm_recipe, unified_recipe

RATES = {"head": 1e-2, "body": 1e-2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


def log(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("per_second", "seconds", "elapsed", "memory_gb", "mfu_measured", "data_wait")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]


@pytest.mark.parametrize(
    ("route", "ranks"),
    [("mllm", WHOLE), ("mllm", PARTS), ("unified", WHOLE), ("unified", PARTS), ("unified", SPLIT)],
)
def test_two_ranks_evaluate_what_one_does(parts, route, ranks, tmp_path):
    """Held whole, in parts or in slices; and evaluate without changing what they train."""
    from dataclasses import replace

    make = {"mllm": mllm_recipe, "unified": unified_recipe}[route]
    fields = {"gradient_accumulation_steps": 2, "ema": 0.9, "save_every": 3, "evaluate_examples": 2}
    recipe = make(parts, evaluate_every=2, evaluate_questions=5, best_metric="-loss", **fields)
    run(recipe, tmp_path / "one", show=silent)

    def work(_rank):
        run(replace(recipe, ranks=ranks), tmp_path / "two", show=silent)
        plain = make(parts, **fields)
        run(replace(plain, ranks=ranks), tmp_path / "plain", show=silent)

    together(work, tmp_path)
    one, two, plain = (log(tmp_path / name) for name in ("one", "two", "plain"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            close = isinstance(value, float)
            assert b[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if close else value)
    assert [x for x in two if "grad_norm" in x] == [x for x in plain if "grad_norm" in x]
    for place in (tmp_path / "one/samples").iterdir():
        other = tmp_path / "two/samples" / place.name
        assert sorted(p.name for p in place.iterdir()) == sorted(p.name for p in other.iterdir())
        texts = [(p / "answers.jsonl").read_text() for p in (place, other)]
        assert texts[0] == texts[1]


def test_a_signal_to_one_rank_leaves_the_evaluation_on_all(tmp_path):
    """The other one has done its share and waits for it."""

    def evaluate(context: EvalContext):
        if context.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return EvalResult.of({"x": 1.0})

    def work(_rank):
        stage = Stage("s", 5, lr=RATES, evaluate_every=2, log_every=1)
        with pytest.raises(InterruptedRunError, match="after step 2"):
            train(toy(), [stage], lambda _: ToyStream(), tmp_path / "run", show=silent,
                  evaluate=evaluate)  # fmt: skip

    together(work, tmp_path)
    assert checkpoint.newest(tmp_path / "run/checkpoints").name == "step-2"
    assert not [line for line in log(tmp_path / "run") if "eval/x" in line]


def test_ranks_add_up_what_each_found(tmp_path):
    def work(rank):
        numbers = (rank, 2 + rank)
        answers = [Answer(number, str(number), "", "q", "a", "r", 1.0) for number in numbers]
        own = EvalResult([(rank, {"x": (1.0 + rank, 2)})], answers)
        found = gather(own, current())
        assert found.metrics == {"x": 0.75}
        assert [answer.number for answer in found.answers] == [0, 1, 2, 3]
        assert gather(own if rank else None, current()) is None

    together(work, tmp_path)


def test_random_numbers_modes_and_averages_are_as_before(tmp_path):
    """Whatever an evaluation draws, and when it is left at once as well."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with rng_preserved(torch.device("cpu")):
        torch.manual_seed(5)
        np.random.seed(5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    seen = []

    def evaluate(context):
        torch.rand(3)
        seen.append((context.step, model.training))
        return EvalResult.of({"x": float(context.step)})

    model, plain = toy(), toy()
    stages = [Stage("s", 4, lr=RATES, ema=0.5, evaluate_every=1, log_every=1)]
    train(model, stages, lambda _: ToyStream(), tmp_path / "a", show=silent, evaluate=evaluate)
    stages = [Stage("s", 4, lr=RATES, ema=0.5, log_every=1)]
    train(plain, stages, lambda _: ToyStream(), tmp_path / "b", show=silent)
    assert seen == [(1, False), (2, False), (3, False), (4, False)]
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_live_view_shows_the_latest_evaluation(tmp_path):
    shown = []

    class View:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self):
            pass

        def status(self, text):
            shown.append(text)

    stage = Stage("s", 4, lr=RATES, evaluate_every=2, log_every=1)
    metrics = {"loss": 1.25, "accuracy": 0.5}
    train(toy(), [stage], lambda _: ToyStream(), tmp_path, show=View,
          evaluate=lambda _: EvalResult.of(metrics))  # fmt: skip
    wanted = "eval loss 1.2500  accuracy 50%  loss "
    assert [text.startswith(wanted) for text in shown] == [False, False, True, True, True, True]


def test_an_evaluation_of_nan_is_never_the_best(tmp_path):
    values = iter([float("nan"), 2.0, 1.0])
    stage = Stage("s", 3, lr=RATES, evaluate_every=1, best_metric="x")
    train(toy(), [stage], lambda _: ToyStream(), tmp_path, show=silent,
          evaluate=lambda _: EvalResult.of({"x": next(values)}))  # fmt: skip
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_each_stage_keeps_its_best_whatever_it_scores_by(tmp_path):
    values = iter([0.9, 0.8, 0.7, -5.0, -6.0, -7.0])
    stages = [Stage(n, 3, lr=RATES, evaluate_every=1, best_metric="x", save_every=1) for n in "ab"]
    train(toy(), stages, lambda _: ToyStream(), tmp_path, show=silent, keep=1,
          evaluate=lambda _: EvalResult.of({"x": next(values)}))  # fmt: skip
    found = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert found == {"step-1", "step-4", "step-6"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"evaluate_every": 2}, "nothing to evaluate"),
        ({"best_metric": "x"}, "never evaluates"),
    ],
)
def test_training_refuses_what_it_cannot_evaluate(fields, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        train(toy(), [Stage("s", 2, lr=RATES, **fields)], lambda _: ToyStream(), tmp_path)
    with pytest.raises(ConfigError, match="evaluate_samples is -1"):
        Stage("s", 2, evaluate_samples=-1)


def examples():
    image = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    answer = Answer(3, "s3", "", "what|is it?", "red", "a\nred one", 0.0)
    failed = Answer(4, "s4", "", "and this?", "blue", error="no such image")
    return Examples([(answer, image), (failed, None)], [Drawing("a red square", image)])


class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tables_of_examples_reach(name, monkeypatch, tmp_path):
    logged = []
    module = types.ModuleType(name)
    module.Table, module.Image = Table, lambda image: ("image", image.size)
    module.log = lambda values, step: logged.append((step, values))
    module.finish = lambda: None
    module.init = lambda **_: module
    monkeypatch.setitem(sys.modules, name, module)
    (sink,) = open_sinks([name], tmp_path / "run", {})
    sink.show(7, examples())
    ((step, values),) = logged
    assert step == 7
    assert values["examples/answers"].columns == [
        "image", "question", "reference", "reply", "correct",
    ]  # fmt: skip
    assert values["examples/answers"].data == [
        [("image", (4, 4)), "what|is it?", "red", "a\nred one", "0"],
        [None, "and this?", "blue", "no such image", ""],
    ]
    assert values["examples/drawings"].data == [[("image", (4, 4)), "a red square"]]


def test_tensorboard_shows_examples(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = open_sinks(["tensorboard"], tmp_path, {})
    sink.show(7, examples())
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"examples/answers/0", "examples/drawings/0"}
    (text,) = events.Tensors("examples/answers/text_summary")
    assert text.step == 7
    assert b"| what\\|is it? | red | a red one | 0 |" in text.tensor_proto.string_val[0]


def test_mlflow_keeps_examples(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    (sink,) = open_sinks(["mlflow"], tmp_path, {})
    sink.show(7, examples())
    found = {f.path for f in sink._client.list_artifacts(sink._id, "samples/step-7")}
    sink.close()
    names = {"answers.md", "question-0.png", "drawing-0.png", "drawings.json"}
    assert found == {f"samples/step-7/{name}" for name in names}
