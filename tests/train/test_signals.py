"""SIGTERM and SIGINT: a checkpoint and out, wherever the run is; and none of its steps lost."""

import os
import signal
import threading
import time

import pytest
import torch
from train_toys import STAGES, ToyStream, toy

from chiasm import cli
from chiasm.core.errors import InterruptedRunError
from chiasm.core.progress import silent
from chiasm.train import checkpoint
from chiasm.train.evaluation import EvalResult
from chiasm.train.loop import train
from chiasm.train.signals import Interruption
from chiasm.train.stage import Stage

RATES = {"head": 1e-2, "body": 1e-2}


class Signalled(ToyStream):
    """Sends a signal to its own process before a batch."""

    def __init__(self, after, number=signal.SIGTERM):
        super().__init__()
        self.after, self.number, self.seen = after, number, 0

    def __iter__(self):
        for batch in super().__iter__():
            if self.seen == self.after:
                os.kill(os.getpid(), self.number)
            self.seen += 1
            yield batch


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, after, number):
    whole = toy()
    train(whole, STAGES, lambda _: ToyStream(), tmp_path / "whole", show=silent)
    before = signal.getsignal(number)
    left = after  # of the first stage, then of the second

    def stream(stage):
        at = left if stage.name == "one" else left - 6
        return Signalled(at, number)

    with pytest.raises(InterruptedRunError) as caught:
        train(toy(), STAGES, stream, tmp_path / "cut", show=silent)
    assert caught.value.code == 128 + number
    assert f"after step {after}" in str(caught.value)
    assert signal.getsignal(number) == before
    model = toy()
    train(model, STAGES, lambda _: ToyStream(), tmp_path / "cut", show=silent, resume=True)
    assert same(whole, model)


def test_no_micro_batch_more_is_run_and_none_is_lost(tmp_path):
    """Between the micro-batches of one long step: the half step is dropped, and its data kept."""
    stage = [Stage("s", 4, lr=RATES, gradient_accumulation_steps=8)]
    whole, model, made = toy(), toy(), []
    train(whole, stage, lambda _: ToyStream(), tmp_path / "whole", show=silent)

    def stream(_):
        made.append(Signalled(1 if len(made) == 3 else 99))  # the fourth micro-batch of step 2
        return made[-1]

    with pytest.raises(InterruptedRunError, match="after step 1"):
        train(model, stage, stream, tmp_path / "cut", show=silent)
    assert [s.seen for s in made] == [2, 2, 2, 2, 1, 1, 1, 1]
    model = toy()
    train(model, stage, lambda _: ToyStream(), tmp_path / "cut", show=silent, resume=True)
    assert same(whole, model)


def test_an_evaluation_is_left_at_once(tmp_path):
    def evaluate(_):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            time.sleep(60)
        except Exception:  # what evaluations do with errors of single samples
            pytest.fail("the way out was mistaken for an error")
        return EvalResult.of({"x": 1.0})

    model = toy()
    began = time.perf_counter()
    stage = Stage("s", 5, lr=RATES, evaluate_every=2)
    with pytest.raises(InterruptedRunError, match="after step 2"):
        train(model, [stage], lambda _: ToyStream(), tmp_path, show=silent, evaluate=evaluate)
    assert time.perf_counter() - began < 10
    assert model.training
    assert checkpoint.newest(tmp_path / "checkpoints").name == "step-2"


@pytest.fixture
def heard():
    """A shell's background jobs are started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_second_signal_does_not_wait():
    def asked_twice():
        with Interruption() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        asked_twice()


def test_outside_the_main_thread_nothing_is_installed(tmp_path):
    failed = []

    def work():
        try:
            stage = Stage("s", 2, lr=RATES)
            train(toy(), [stage], lambda _: ToyStream(), tmp_path, show=silent)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_the_command_line_ends_with_the_shells_code(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise InterruptedRunError(signal.SIGTERM, 7, True)

    monkeypatch.setattr("chiasm.recipes.run.run", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "encoder"])
    assert caught.value.code == 143
    assert "after step 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--resume"], "yes"),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
        (["--resume", "--seed", "3"], "yes"),
        ([], "no"),
    ],
)
def test_resume_alone_or_with_a_word(monkeypatch, given, read):
    seen = []
    monkeypatch.setattr("chiasm.recipes.run.run", lambda *given, **_: seen.append(given[2]))
    with pytest.raises(AttributeError):  # there is no ledger to report on
        cli.main(["train", "encoder", *given])
    assert seen == [read]
