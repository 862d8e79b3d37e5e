"""SIGKILL at any moment: the newest complete checkpoint loads, and the run goes on as if nothing
had happened. Processes are forked, so that hundreds of deaths cost no imports."""

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from train_toys import STAGES, ToyStream, toy

from chiasm.core.progress import silent
from chiasm.train import async_checkpoint as writer
from chiasm.train import checkpoint
from chiasm.train.async_checkpoint import Writer
from chiasm.train.loop import train

EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"),
    *("os.scandir", "os.listdir"),
}
"""What Python says of itself before it touches a file (its audit events)."""


def forked(work):
    """Run it in a child; its wait status. A child that fails says why and exits with 1."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def dies_at(count):
    """SIGKILL this process at its count-th operation on a file from here on: before an open, a
    rename, a deletion, before and after an fsync, and in the midst of writing tensors."""
    left = count

    def tick(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, _arguments: tick() if event in EVENTS else None)
    fsync, save_file = os.fsync, checkpoint.save_file

    def counted_fsync(handle):
        tick()
        fsync(handle)
        tick()

    def counted_save(tensors, path):
        """safetensors writes by itself: a death there leaves any first part of the file."""
        nonlocal left
        save_file(tensors, path)
        whole = path.read_bytes()
        for share in (0.0, 0.5, 0.99):
            if left == 1:
                left += 1  # opening it counts as well
                path.write_bytes(whole[: int(share * len(whole))])
            tick()

    os.fsync, checkpoint.save_file = counted_fsync, counted_save


def step(number):
    return {"model": {"a.w": torch.full((4,), float(number))}, "optimizer": {"x": torch.ones(2)}}


def save_steps(folder, first, last):
    """Through the writer, as training does: with pruning, and a best one kept."""
    made = Writer(folder, 2, lambda text: pytest.fail(text))
    for number in range(first, last + 1):
        state = {"step": number, "score": 1.0 if number == 3 else 0.0}
        made.submit(number, step(number), state)
        made.wait()


def assert_loads(folder, least):
    """The newest complete checkpoint is whole, and none that was complete is lost."""
    place = checkpoint.newest(folder)
    if place is None:
        assert least == 0
        return 0
    number = checkpoint.read_json(place / "state.json")["step"]
    assert place.name == f"step-{number}"
    assert number >= least
    tensors = checkpoint.read_tensors(place / "model.safetensors")
    assert torch.equal(tensors["a.w"], torch.full((4,), float(number)))
    checkpoint.read_tensors(place / "optimizer.safetensors")
    return number


def kill_while_saving(tmp_path, points):
    """Die at each of these operations of eight saves; how many deaths there were."""
    died = 0
    for count in points:
        folder = tmp_path / f"at{count}"

        def work(count=count, folder=folder):
            dies_at(count)
            save_steps(folder, 1, 8)

        status = forked(work)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        died += 1
        reached = assert_loads(folder, 0)
        save_steps(folder, reached + 1, 9)  # what was left in the way does not hinder
        assert assert_loads(folder, 9) == 9
        left = {p.name for p in folder.iterdir()}
        assert left == {"step-3", "step-8", "step-9"}
        shutil.rmtree(folder)
    return died


def test_killed_at_a_sample_of_the_operations_of_saving(tmp_path):
    assert kill_while_saving(tmp_path, range(1, 300, 29)) >= 7


@pytest.mark.slow
def test_killed_at_every_operation_of_saving(tmp_path):
    assert kill_while_saving(tmp_path, range(1, 1000)) >= 200


@contextmanager
def killed_after(seconds, work):
    """A child that trains and is killed from outside."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    yield


def kill_while_training(tmp_path, kills):
    """Killed again and again at random moments of one run, of both stages, then let finish."""
    moments = random.Random(kills)

    def run(folder, resume=True, delay=0.0):
        class Slow(ToyStream):
            def __iter__(self):
                for batch in super().__iter__():
                    time.sleep(delay)
                    yield batch

        model = toy()
        train(model, STAGES, lambda _: Slow(), folder, show=silent, resume=resume)
        return model

    whole = run(tmp_path / "whole", resume=False)
    for number in range(kills):
        folder = tmp_path / f"cut{number}"
        for _ in range(2):
            with killed_after(moments.uniform(0.0, 0.6), partial(run, folder, delay=0.03)):
                place = checkpoint.newest(folder / "checkpoints")
                if place is not None:
                    for file in place.glob("*.safetensors"):
                        checkpoint.read_tensors(file)
        again = run(folder)
        for one, two in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, two)


def test_killed_at_a_few_moments_of_training(tmp_path):
    kill_while_training(tmp_path, 2)


@pytest.mark.slow
def test_killed_at_many_moments_of_training(tmp_path):
    kill_while_training(tmp_path, 20)


@contextmanager
def files_limited_to(size):
    """The system refuses to let files grow beyond this, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_that_checkpoint_and_no_more(tmp_path):
    told = []
    made = Writer(tmp_path, 2, told.append)
    made.submit(1, step(1), {"step": 1})
    assert made.wait()
    with files_limited_to(40):
        made.submit(2, step(2), {"step": 2})
        assert not made.wait()
    assert "last good checkpoint is step-1" in told[0]
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert_loads(tmp_path, 1)
    made.submit(3, step(3), {"step": 3})  # there is space again
    assert made.wait()
    assert assert_loads(tmp_path, 3) == 3


def test_training_survives_a_place_it_may_not_write_to(tmp_path, capsys):
    """A file where the folder of checkpoints should be is refused to root as well."""
    (tmp_path / "checkpoints").write_text("in the way")
    whole, model = toy(), toy()
    train(whole, STAGES, lambda _: ToyStream(), tmp_path / "whole", show=silent)
    train(model, STAGES, lambda _: ToyStream(), tmp_path, show=silent)
    for one, two in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert capsys.readouterr().err.count("could not be written") == 6


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """Steps after the copy change nothing in it, however long the disk takes."""
    save, seen = checkpoint.save, {}

    def slowly(folder, tensors, state):
        time.sleep(0.2)
        seen[state["total"]] = tensors["model"]["head.bias"].clone()
        save(folder, tensors, state)

    monkeypatch.setattr(writer.checkpoint, "save", slowly)
    quick = toy()
    train(quick, STAGES[:1], lambda _: ToyStream(), tmp_path / "a", show=silent)
    monkeypatch.undo()
    train(toy(), STAGES[:1], lambda _: ToyStream(), tmp_path / "b", show=silent, keep=9)
    for number, bias in seen.items():
        place = tmp_path / f"b/checkpoints/step-{number}/model.safetensors"
        assert torch.equal(checkpoint.read_tensors(place)["head.bias"], bias)
    assert sorted(seen) == [2, 4, 6]


def test_a_fresh_start_over_an_earlier_runs_checkpoints_is_refused(tmp_path):
    train(toy(), STAGES[:1], lambda _: ToyStream(), tmp_path, show=silent)
    with pytest.raises(checkpoint.CheckpointError, match="--resume"):
        train(toy(), STAGES[:1], lambda _: ToyStream(), tmp_path, show=silent)
