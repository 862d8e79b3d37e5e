"""One small model trained once: what a sweep is made of."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree

import torch

from chiasm.core.device import resolve
from chiasm.core.errors import DivergedError
from chiasm.core.progress import silent
from chiasm.recipes.stability.toy import VOCABULARY, Kind, ToyStream
from chiasm.train.checkpoint import read_json, write_whole
from chiasm.train.loop import train
from chiasm.train.stage import GuardSettings, Stage
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified


@dataclass(frozen=True)
class Trial:
    """width: of the model, in heads of 16. rate: the peak of the learning rate. rows: documents a
    step (recipes/stability/toy.py)."""

    kind: Kind
    width: int
    layers: int
    qk_norm: bool
    z_loss: float
    rate: float
    seed: int
    steps: int
    rows: int

    @property
    def name(self) -> str:
        settings = "+".join(("qk" * self.qk_norm, "z" * bool(self.z_loss))).strip("+") or "plain"
        return f"{self.kind}-d{self.width}-{settings}-lr{self.rate:.0e}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """loss: mean over the last tenth of the steps, of the cross entropy alone (nats a token);
    start: of the first step. None: the run was lost. log_z: root mean square of logZ at the end,
    log_z_start at the first step. largest_logit, output_rms: (step, value) in order."""

    loss: float | None
    start: float
    log_z: float | None
    log_z_start: float
    largest_logit: list[tuple[int, float]]
    output_rms: list[tuple[int, float]]


def outcome_of(trial: Trial, folder: Path) -> Outcome:
    """Train it, or read what an earlier call found; folder/NAME.json appears when it is done."""
    file = folder / f"{trial.name}.json"
    if file.exists():
        return Outcome(**read_json(file)["outcome"])
    # Of one that was stopped: a log of both tries would count their steps together as lost.
    rmtree(folder / trial.name, ignore_errors=True)
    lines = _lines(trial, folder / trial.name)
    done = _outcome(trial, lines)
    write_whole(file, json.dumps({"trial": asdict(trial), "outcome": asdict(done)}, indent=2))
    return done


def _lines(trial: Trial, folder: Path) -> list[dict]:
    """metrics.jsonl of a run from scratch; one that could not go on has what came before."""
    torch.manual_seed(trial.seed)
    heads = trial.width // 16
    config = UnifiedConfig(
        text_vocabulary=VOCABULARY.text,
        hidden_size=trial.width,
        layers=trial.layers,
        heads=heads,
        kv_heads=heads,
        intermediate_size=4 * trial.width,
        qk_norm=trial.qk_norm,
        z_loss=trial.z_loss,
        image_weight=1.0,
    )
    every = max(1, trial.steps // 20)
    stage = Stage(
        trial.name,
        trial.steps,
        {"embedding": trial.rate, "transformer": trial.rate},
        warmup_ratio=0.1,
        autocast="none",
        log_every=1,
        monitor_every=every,
        # Runs are to diverge where they do: only what is not finite is kept from the weights.
        guard=GuardSettings(threshold=0.0, patience=5, rollbacks=0),
    )
    stream = ToyStream(trial.kind, trial.rows, trial.seed)
    with suppress(DivergedError):  # the lines say so
        model = Unified(config, VOCABULARY)
        train(model, [stage], lambda _: stream, folder, show=silent, device=resolve())
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _outcome(trial: Trial, lines: list[dict]) -> Outcome:
    steps = [line for line in lines if "loss" in line]
    last = steps[-max(1, trial.steps // 10) :] if len(steps) == trial.steps else []

    def mean(values: list[float]) -> float | None:
        found = sum(values) / len(values) if values else math.nan
        return found if math.isfinite(found) else None

    def plain(line: dict) -> float:
        return line["loss"] - trial.z_loss * line["log_z_squared"]

    def series(name: str) -> list[tuple[int, float]]:
        return [
            (line["step"], line[name]) for line in steps if math.isfinite(line.get(name, math.nan))
        ]

    squared = mean([line["log_z_squared"] for line in last])
    return Outcome(
        mean([plain(line) for line in last]),
        plain(steps[0]),
        None if squared is None else squared**0.5,
        steps[0]["log_z_squared"] ** 0.5,
        series("monitor/largest_logit"),
        series("monitor/output_rms"),
    )
