"""Several jobs side by side, each in a process of its own with an equal share of the cores.

Small models leave cores idle between their products: two jobs of one thread each get 1.6 times as
much done here as one after the other with two threads (LOG.md).
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import resource
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from chiasm.core.errors import ChiasmError
from chiasm.core.progress import Show, bars

Job = Callable[[Show], Any]


@dataclass
class Outcome:
    """What a lane's job returned, and the most memory its process held (GB)."""

    value: Any
    peak_memory_gb: float


class _Remote:
    """A View whose bar is drawn by the process that waits."""

    def __init__(self, messages: Any, lane: str, title: str, total: int, done: int = 0):
        self._send = partial(_send, messages, lane)
        self._begin = (title, total, done)

    def __enter__(self) -> _Remote:
        self._send("begin", self._begin)
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def advance(self) -> None:
        self._send("advance", None)

    def status(self, text: str) -> None:
        self._send("status", text)


def side_by_side(jobs: Mapping[str, Job], threads: int | None = None) -> dict[str, Outcome]:
    """Run picklable jobs together; lane -> outcome. threads: of each lane, by default its share of
    this process's. The first failure ends the other lanes and is raised here: a ChiasmError with
    its message, anything else as a RuntimeError with the lane's traceback."""
    threads = threads or max(1, torch.get_num_threads() // len(jobs))
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    processes = {
        lane: context.Process(target=_run, args=(messages, lane, job, threads), name=lane)
        for lane, job in jobs.items()
    }
    for process in processes.values():
        process.start()
    try:
        return _watch(messages, processes)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _watch(messages: Any, processes: Mapping[str, Any]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    with bars() as view:
        tasks = {lane: view.add_task(lane, total=None, status="starting") for lane in processes}
        while len(outcomes) < len(processes):
            try:
                lane, kind, value = messages.get(timeout=1.0)
            except queue.Empty:
                _check_alive(processes, outcomes)
                continue
            if kind == "begin":
                title, total, done = value
                view.reset(
                    tasks[lane],
                    description=f"{lane}: {title}",
                    total=total,
                    completed=done,
                    status="",
                )
            elif kind == "advance":
                view.advance(tasks[lane])
            elif kind == "status":
                view.update(tasks[lane], status=value)
            elif kind == "done":
                outcomes[lane] = value
                view.update(tasks[lane], description=f"{lane}: finished", status="")
                view.stop_task(tasks[lane])
            else:
                raise value
    return outcomes


def _check_alive(processes: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    for lane, process in processes.items():
        if lane not in outcomes and process.exitcode not in (None, 0):
            raise RuntimeError(
                f"the lane '{lane}' died with exit code {process.exitcode}; "
                "-9 usually means that memory ran out"
            )


def _run(messages: Any, lane: str, job: Job, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        value = job(partial(_Remote, messages, lane))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        _send(messages, lane, "done", Outcome(value, peak))
    except ChiasmError as error:
        # Not every one of them can be rebuilt from its message, which is all that is needed.
        _send(messages, lane, "failed", ChiasmError(str(error)))
    except Exception:
        _send(messages, lane, "failed", RuntimeError(f"lane '{lane}':\n{traceback.format_exc()}"))


def _send(messages: Any, lane: str, kind: str, value: Any) -> None:
    messages.put((lane, kind, value))
