"""What a run records: metrics.jsonl (the source of truth) and the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Entry:
    """What one stage has cost so far."""

    name: str
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    images: int = 0
    flops: float = 0.0
    skipped_steps: int = 0
    trained_parameters: int = 0
    frozen_parameters: int = 0


@dataclass
class Ledger:
    """The cost of a run, a stage at a time; saved as ledger.json and with every checkpoint."""

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
        (folder / "ledger.json").write_text(json.dumps(self.to_dict(), indent=2))


class MetricsFile:
    """Appends one JSON object a line; on resume, lines past the resumed step are dropped first."""

    def __init__(self, folder: Path, resumed_step: int):
        self.path = folder / "metrics.jsonl"
        kept = []
        if self.path.exists() and resumed_step:
            for line in self.path.read_text().splitlines():
                if json.loads(line)["step"] <= resumed_step:
                    kept.append(line + "\n")
        self.path.write_text("".join(kept))

    def write(self, record: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
