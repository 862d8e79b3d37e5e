"""metrics.jsonl whatever happens, and the places that hear of it besides."""

import json
import resource
import signal
import sys
import types

import pytest
from train_toys import ToyStream, toy

from chiasm.core.errors import ConfigError, MissingExtraError
from chiasm.core.progress import silent
from chiasm.train.log import Metrics
from chiasm.train.loggers import KINDS, open_sinks
from chiasm.train.loop import train
from chiasm.train.stage import Stage

LINE = {"step": 3, "stage": "s", "loss": 0.5, "eval/x": 1}


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_cut_short_by_a_crash_is_dropped_on_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 5}\n{"step": 2}\n{"st')
    Metrics(tmp_path, 2).write({"step": 3})
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3]


def test_what_a_full_disk_refuses_is_written_later(tmp_path):
    """A real refusal of the system: the size of files is limited to what is there already."""
    metrics = Metrics(tmp_path, 0)
    metrics.write({"step": 1})
    size = metrics.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
        metrics.write({"step": 2})
        assert metrics.path.stat().st_size == size, "half a line was left"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    metrics.write({"step": 3})
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3]


def test_every_sink_hears_every_line_and_a_broken_one_is_left_out(tmp_path, capsys):
    class Heard:
        def __init__(self):
            self.steps, self.closed = [], False

        def write(self, record):
            self.steps.append(record["step"])

        def close(self):
            self.closed = True

    class Broken(Heard):
        def write(self, record):
            raise OSError("no network")

    heard = Heard()
    stage = Stage("s", 4, lr={"head": 1e-2}, log_every=2)
    train(
        toy(),
        [stage],
        lambda _: ToyStream(),
        tmp_path,
        show=silent,
        sinks=lambda step: [Broken(), heard],
    )
    assert heard.steps == [2, 4]
    assert heard.closed
    assert [x["step"] for x in lines(tmp_path) if "loss" in x] == [2, 4]
    assert capsys.readouterr().err.count("no network") == 1


def test_unknown_and_missing_sinks_say_so(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        open_sinks(["tensorbord"], tmp_path, {})
    for name in KINDS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=rf"\.\[{name}\]"):
            open_sinks([name], tmp_path, {})


def test_wandb_is_given_numbers_by_step(tmp_path, monkeypatch):
    seen = []
    fake = types.SimpleNamespace(
        log=lambda values, step: seen.append((step, values)), finish=lambda: seen.append("finish")
    )
    settings = {}
    module = types.ModuleType("wandb")
    module.init = lambda **given: settings.update(given) or fake
    monkeypatch.setitem(sys.modules, "wandb", module)
    (sink,) = open_sinks(["wandb"], tmp_path / "my-run", {"seed": 1})
    sink.write(LINE)
    sink.close()
    assert seen == [(3, {"loss": 0.5, "eval/x": 1.0}), "finish"]
    first = settings["id"]
    open_sinks(["wandb"], tmp_path / "my-run", {}, resumed_step=3)
    assert settings["id"] == first, "a resumed run is another run"
    open_sinks(["wandb"], tmp_path / "my-run", {"seed": 1})
    assert settings["id"] != first
    assert settings["name"] == "my-run"
    assert settings["config"] == {"seed": 1}


def test_tensorboard_writes_what_its_own_reader_reads(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = open_sinks(["tensorboard"], tmp_path, {})
    sink.write(LINE)
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]


def test_mlflow_keeps_what_its_own_client_reads(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (sink,) = open_sinks(["mlflow"], tmp_path, {"seed": 1})
    sink.write(LINE)
    history = sink._client.get_metric_history(sink._id, "loss")
    sink.close()
    assert [(m.step, m.value) for m in history] == [(3, 0.5)]


def test_trackio_is_given_numbers_by_step(tmp_path, monkeypatch):
    seen = []
    module = types.ModuleType("trackio")
    module.init = lambda **given: seen.append((given["name"], given["resume"]))
    module.log = lambda values, step: seen.append((step, values))
    module.finish = lambda: seen.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", module)
    (sink,) = open_sinks(["trackio"], tmp_path / "run", {}, resumed_step=2)
    sink.write(LINE)
    sink.close()
    assert seen == [("run", "allow"), (3, {"loss": 0.5, "eval/x": 1.0}), "finish"]
