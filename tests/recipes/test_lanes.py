"""Jobs side by side: results come home, bars are relayed, failures end everything."""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from chiasm.core.errors import ChiasmError, MissingExtraError
from chiasm.recipes.workers import side_by_side


def work(value, show):
    with show("working", 3, 0) as view:
        for _ in range(3):
            view.advance()
            view.status("going well")
    return value, os.getpid(), torch.get_num_threads()


def missing(show):
    raise MissingExtraError("peft", "lora", "Training")


def broken(show):
    raise ValueError("a detail of the lane")


def killed(show):
    os._exit(9)


def slow(show):
    time.sleep(600)


def test_every_lane_has_its_own_process_and_share_of_threads():
    lanes = side_by_side({"a": partial(work, 1), "b": partial(work, 2)}, threads=2)
    values = {name: lane.value for name, lane in lanes.items()}
    assert (values["a"][0], values["b"][0]) == (1, 2)
    assert len({os.getpid(), values["a"][1], values["b"][1]}) == 3
    assert {values["a"][2], values["b"][2]} <= {1, 2}  # 2 once the other has ended
    assert all(lane.peak_memory_gb > 0.01 for lane in lanes.values())
    for lane in lanes.values():
        ((title, seconds),) = lane.began
        assert title == "working"
        assert 0 < seconds < 60


def test_in_a_file_lanes_say_what_they_begin(capsys):
    side_by_side({"a": partial(work, 1)}, threads=1)
    said = [line.split(" s ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert said[:2] == ["a: working", "a: finished"]


def waits_for_the_other(show):
    threads = []
    with show("waiting", 600, 0) as view:
        for _ in range(600):
            view.advance()
            threads.append(torch.get_num_threads())
            if threads[-1] == 4:
                break
            time.sleep(0.1)
    return threads


def test_the_last_lane_gets_all_cores_at_its_next_step():
    lanes = side_by_side({"short": partial(work, 1), "long": waits_for_the_other}, threads=4)
    assert lanes["short"].value[2] in (2, 4)
    assert lanes["long"].value[-1] == 4


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (missing, ChiasmError, r"pip install -e '\.\[lora\]'"),
        (broken, RuntimeError, "a detail of the lane"),
        (killed, RuntimeError, "'bad' died with exit code 9"),
    ],
)
def test_a_failure_is_told_and_ends_the_others(job, kind, words):
    began = time.monotonic()
    with pytest.raises(kind, match=words):
        side_by_side({"bad": job, "good": slow})
    assert time.monotonic() - began < 60


def says_who_it_is(folder, show):
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def test_lanes_end_with_a_parent_that_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = {name: partial(says_who_it_is, tmp_path) for name in ("a", "b")}
    parent = context.Process(target=side_by_side, args=(jobs,))
    parent.start()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.join()
    for file in tmp_path.iterdir():
        wait_until(lambda: not running(int(file.name)))  # noqa: B023


def running(process):
    """Not gone, nor dead and waiting for somebody to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
