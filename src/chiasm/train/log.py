"""What a run records: metrics.jsonl (the source of truth) and the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from chiasm.core import aliases
from chiasm.train.callbacks import Callback
from chiasm.train.checkpoint import write_whole
from chiasm.train.evaluation import Examples
from chiasm.train.loggers import Sink

COST = "cost.json"


@dataclass
class Entry:
    """What one stage has cost so far. peak_memory: bytes (train/throughput.py), 0 before its
    end."""

    name: str
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    images: int = 0
    flops: float = 0.0
    skipped_steps: int = 0
    trained_parameters: int = 0
    frozen_parameters: int = 0
    peak_memory: float = 0.0


@dataclass
class Ledger:
    """The cost of a run, a stage at a time; saved as cost.json and with every checkpoint."""

    stages: list[Entry] = field(default_factory=list)

    def entry(self, number: int, name: str) -> Entry:
        """The stage's entry, made on first use."""
        while len(self.stages) <= number:
            self.stages.append(Entry(name))
        return self.stages[number]

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.stages)

    @property
    def flops(self) -> float:
        return sum(e.flops for e in self.stages)

    def to_dict(self) -> dict:
        return {"stages": [asdict(e) for e in self.stages]}

    @classmethod
    def from_dict(cls, state: dict) -> Ledger:
        return cls([Entry(**e) for e in state["stages"]])

    def write(self, folder: Path) -> None:
        write_whole(folder / COST, json.dumps(self.to_dict(), indent=2))
        for old in (old for old, new in aliases.FILES.items() if new == COST):
            (folder / old).unlink(missing_ok=True)  # of an earlier version that began the run


class Metrics:
    """metrics.jsonl, one JSON object a line, and whatever sinks want to hear of it too.

    On resume, lines past the resumed step are dropped first, and one that a crash cut short. Lines
    that the disk refuses are kept and tried again with the next ones. Silent where `folder` is
    None, on all ranks but the first. A sink that fails is left out from then on; an exception of a
    callback is raised.
    """

    def __init__(
        self,
        folder: Path | None,
        resumed_step: int,
        sinks: Sequence[Sink] = (),
        callbacks: Sequence[Callback] = (),
    ):
        self.path = folder / "metrics.jsonl" if folder else None
        self.sinks, self.callbacks = list(sinks), list(callbacks)
        self._waiting = ""
        if self.path is None:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() and resumed_step else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        write_whole(self.path, "".join(line + "\n" for line in kept))

    def write(self, record: dict) -> None:
        if self.path is None:
            return
        self._append(json.dumps(record) + "\n")
        self._tell(record["step"], lambda sink: sink.write(record))
        self._call_back(record)

    def _call_back(self, record: dict) -> None:
        """Call the callbacks of a line of metrics; lines of other kinds are none of theirs."""
        step = record["step"]
        evaluated = {k.removeprefix("eval/"): v for k, v in record.items() if k.startswith("eval/")}
        for callback in self.callbacks:
            if evaluated:
                callback.on_evaluate(step, evaluated)
            elif "loss" in record:
                callback.on_step(step, {k: v for k, v in record.items() if k != "step"})

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint is complete."""
        for callback in self.callbacks:
            callback.on_checkpoint(step, folder)

    def show(self, step: int, examples: Examples) -> None:
        """Answers and drawings of an evaluation, to the sinks alone."""
        self._tell(step, lambda sink: sink.show(step, examples))

    def _tell(self, step: int, act: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                act(sink)
            except Exception as error:  # theirs can be anything, and none is worth the run
                self.sinks.remove(sink)
                self.warn(step, f"{type(sink).__name__} failed ({error}); left out now")

    def warn(self, step: int, text: str) -> None:
        """A line on the terminal and in the log."""
        if self.path is None:
            return
        Console(stderr=True).print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)
        self._append(json.dumps({"step": step, "warning": text}) + "\n")

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def _append(self, line: str) -> None:
        assert self.path is not None
        self._waiting += line
        data = self._waiting.encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                whole = file.tell()
                if file.write(data) < len(data):  # the disk is full: leave no half of a line
                    file.truncate(whole)
                    return
        except OSError:
            return
        self._waiting = ""


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
