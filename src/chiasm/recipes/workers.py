"""Several jobs side by side, each in a process of its own with an equal share of the cores.

Small models leave cores idle between their products: two jobs of one thread each get more done than
one after the other with two threads (LOG.md). How many threads a step has depends on how far the
other lanes are, so two runs agree up to the order of sums, not to the bit.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import torch

from chiasm.core.allocator import keep_freed_memory
from chiasm.core.errors import ChiasmError
from chiasm.core.progress import Show, bars

Job = Callable[[Show], Any]


@dataclass
class Outcome:
    """What a lane's job returned, the most memory its process held (GB), and when each piece of its
    work began (title, seconds since all lanes were started)."""

    value: Any
    peak_memory_gb: float
    began: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class _Lane:
    """What a lane's process knows of the others. running: how many lanes are at work (shared)."""

    name: str
    messages: Any
    running: Any
    threads: int

    def send(self, kind: str, value: Any) -> None:
        self.messages.put((self.name, kind, value))

    def take_share(self) -> None:
        """The cores of lanes that have ended go to the others, from their next step on."""
        share = max(1, self.threads // max(1, self.running.value))
        if share != torch.get_num_threads():
            torch.set_num_threads(share)


class _Remote:
    """A View whose bar is drawn by the process that waits."""

    def __init__(self, lane: _Lane, title: str, total: int, done: int = 0):
        self._lane, self._send = lane, lane.send
        self._begin = (title, total, done)

    def __enter__(self) -> _Remote:
        self._lane.take_share()
        self._send("begin", self._begin)
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def advance(self) -> None:
        self._lane.take_share()
        self._send("advance", None)

    def status(self, text: str) -> None:
        self._send("status", text)


def side_by_side(jobs: Mapping[str, Job], threads: int | None = None) -> dict[str, Outcome]:
    """Run picklable jobs together; lane -> outcome. threads: of all of them, by default this
    process's. The first failure ends the other lanes and is raised here: a ChiasmError with
    its message, anything else as a RuntimeError with the lane's traceback."""
    context = multiprocessing.get_context("spawn")
    messages, running = context.Queue(), context.Value("i", len(jobs))
    lanes = {n: _Lane(n, messages, running, threads or torch.get_num_threads()) for n in jobs}
    processes = {
        name: context.Process(target=_run, args=(lanes[name], job), name=name)
        for name, job in jobs.items()
    }
    for process in processes.values():
        process.start()
    try:
        return _watch(messages, running, processes)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _watch(messages: Any, running: Any, processes: Mapping[str, Any]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    start, began = time.perf_counter(), {lane: [] for lane in processes}
    with bars() as view:

        def note(words: str) -> None:
            # Bars are seen at their end in a file or a pipe: nobody should have to wait for that.
            if not view.console.is_terminal:
                view.console.print(f"{time.perf_counter() - start:6.0f} s  {words}")

        tasks = {lane: view.add_task(lane, total=None, status="starting") for lane in processes}
        while len(outcomes) < len(processes):
            try:
                lane, kind, value = messages.get(timeout=1.0)
            except queue.Empty:
                _check_alive(processes, outcomes)
                continue
            if kind == "begin":
                title, total, done = value
                began[lane].append((title, round(time.perf_counter() - start, 1)))
                note(f"{lane}: {title}")
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
                outcomes[lane] = replace(value, began=began[lane])
                running.value -= 1
                note(f"{lane}: finished")
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


def _run(lane: _Lane, job: Job) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    lane.take_share()
    try:
        value = job(partial(_Remote, lane))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lane.send("done", Outcome(value, peak))
    except ChiasmError as error:
        # Not every one of them can be rebuilt from its message, which is all that is needed.
        lane.send("failed", ChiasmError(str(error)))
    except Exception:
        lane.send("failed", RuntimeError(f"lane '{lane.name}':\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """A lane whose waiting process was killed has nobody to report to: it must not go on for an
    hour on the cores of whoever comes next."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
