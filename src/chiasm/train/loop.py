"""The training loop of the encoder, the autoencoder, the MLLM and the unified model alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.core.errors import CheckpointError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import Stream, Trainable
from chiasm.nn.precision import LoweredWeights, autocast, working_dtype
from chiasm.train import checkpoint
from chiasm.train.feature_cache import remembered
from chiasm.train.log import Entry, Ledger, MetricsFile
from chiasm.train.optim import Optimizers, make_optimizer, set_trained
from chiasm.train.recompute import recomputed
from chiasm.train.schedule import factor
from chiasm.train.stage import Stage

Evaluate = Callable[[], dict[str, float]]


@dataclass
class Position:
    """Where a run stands: stage number, step within it, step of the whole run."""

    stage: int = 0
    step: int = 0
    total: int = 0


def train(
    model: Trainable,
    stages: Sequence[Stage],
    stream_of: Callable[[Stage], Stream],
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    keep: int = 2,
    show: Show = Bar,
) -> Ledger:
    """Run the stages and leave metrics.jsonl, ledger.json and checkpoints in `folder`.

    stream_of makes the endless batch stream of a stage. resume continues from the newest complete
    checkpoint in `folder`, bit for bit on CPU; without one it starts afresh. evaluate is called
    every stage.evaluate_every steps and its numbers are logged as eval/<name>. Steps whose loss or
    gradient is not finite never reach the weights: they are skipped, counted and logged.
    """
    assert isinstance(model, nn.Module)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    trainer = _Trainer(model, stages, folder, evaluate, keep, show)
    at = trainer.restore() if resume else None
    start = at or Position()
    trainer.metrics = MetricsFile(folder, start.total)
    for number in range(start.stage, len(stages)):
        step = start.step if number == start.stage else 0
        trainer.run_stage(number, step, stream_of(stages[number]), resumed=at is not None)
        at = None
    trainer.ledger.write(folder)
    model.eval()
    return trainer.ledger


class _Trainer:
    def __init__(
        self,
        model: Any,
        stages: Sequence[Stage],
        folder: Path,
        evaluate: Evaluate | None,
        keep: int,
        show: Show,
    ):
        self.model, self.stages, self.folder = model, stages, folder
        self.evaluate, self.keep, self.show = evaluate, keep, show
        self.ledger = Ledger()
        self.total = 0
        self.metrics: MetricsFile
        self.optimizer: Optimizers
        self._saved_stream: dict | None = None
        self._saved_optimizer: dict[str, torch.Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def run_stage(self, number: int, first: int, stream: Stream, resumed: bool) -> None:
        stage = self.stages[number]
        set_trained(self.model, stage)
        self.optimizer = make_optimizer(self.model, stage)
        entry = self.ledger.entry(number, stage.name)
        entry.trained_parameters = sum(
            p.numel() for p in self.model.parameters() if p.requires_grad
        )
        entry.frozen_parameters = sum(
            p.numel() for p in self.model.parameters() if not p.requires_grad
        )
        if resumed and self._saved_stream is not None and self._saved_optimizer is not None:
            stream.load_state_dict(self._saved_stream)
            self.optimizer.load_tensors(self._saved_optimizer)
        batches = iter(stream)
        self.model.train()
        lowered = LoweredWeights(self.model, working_dtype(stage.autocast, self.device))
        try:
            with (
                remembered(self.model, stage),
                recomputed(self.model.blocks() if stage.recompute else ()),
            ):
                self._steps(number, first, stream, batches, entry, lowered)
        finally:
            lowered.restore()
        self.ledger.write(self.folder)

    def _steps(
        self,
        number: int,
        first: int,
        stream: Stream,
        batches: Iterator,
        entry: Entry,
        lowered: LoweredWeights,
    ) -> None:
        stage, window = self.stages[number], _Window()
        with self.show(stage.name, stage.steps, first) as view:
            for step in range(first, stage.steps):
                began = time.perf_counter()
                record = self._step(stage, step, batches, entry)
                entry.seconds += time.perf_counter() - began
                window.add(record, time.perf_counter() - began)
                view.advance()
                last = step + 1 == stage.steps
                if last or (stage.log_every and (step + 1) % stage.log_every == 0):
                    line = {
                        "step": self.total,
                        "stage": stage.name,
                        **window.flush(),
                        "skipped_steps": entry.skipped_steps,
                        "elapsed": self.ledger.seconds,
                    }
                    self.metrics.write(line)
                    view.status(f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tok/s")
                if (
                    self.evaluate
                    and stage.evaluate_every
                    and (step + 1) % stage.evaluate_every == 0
                ):
                    with lowered.restored():
                        self._evaluate(stage)
                if stage.save_every and ((step + 1) % stage.save_every == 0 or last):
                    with lowered.restored():
                        self._save(number, step + 1, stream)

    def _step(self, stage: Stage, step: int, batches: Iterator, entry: Entry) -> dict[str, float]:
        """One optimiser step over stage.accumulate micro-batches; what happened, for the log."""
        scale = factor(stage, step)
        for group in self.optimizer.groups:
            group["lr"] = group["peak"] * scale
        self.optimizer.zero_grad()
        count, parts, cost = 0, {}, {"tokens": 0, "images": 0, "flops": 0.0}
        total = 0.0
        for _ in range(stage.accumulate):
            batch = next(batches)
            with autocast(stage.autocast, self.device):
                loss = self.model.loss(batch)
            if loss.count and loss.sum.requires_grad:
                loss.sum.backward()
            count, total = count + loss.count, total + loss.sum.item()
            for name, (value, n) in loss.parts.items():
                before = parts.get(name, (0.0, 0.0))
                parts[name] = (before[0] + value, before[1] + n)
            spent = self.model.cost(batch)
            for name in cost:
                cost[name] += getattr(spent, name)
        norm = self._update(stage, count, total, entry)
        entry.steps += 1
        entry.tokens += int(cost["tokens"])
        entry.images += int(cost["images"])
        entry.flops += cost["flops"]
        self.total += 1
        rates = {f"lr/{g['name']}": g["lr"] for g in self.optimizer.groups}
        means = {name: value / n for name, (value, n) in parts.items() if n}
        return {"loss": total / max(1, count), "grad_norm": norm, **means, **rates, **cost}

    def _update(self, stage: Stage, count: int, total: float, entry: Entry) -> float:
        """Divide the summed gradients by the step's count, clip, and apply them if finite."""
        owned = [p for g in self.optimizer.groups for p in g["params"] if p.grad is not None]
        gradients = [p.grad for p in owned if p.grad is not None]
        if not count or not gradients:
            entry.skipped_steps += 1
            return 0.0
        torch._foreach_mul_(gradients, 1.0 / count)
        norm = torch.nn.utils.clip_grad_norm_(owned, stage.clip or math.inf).item()
        if not (math.isfinite(norm) and math.isfinite(total)):
            entry.skipped_steps += 1
            return norm
        self.optimizer.step()
        return norm

    def _evaluate(self, stage: Stage) -> None:
        assert self.evaluate is not None
        self.model.eval()
        numbers = self.evaluate()
        self.model.train()
        record = {f"eval/{name}": value for name, value in numbers.items()}
        self.metrics.write({"step": self.total, "stage": stage.name, **record})

    def _save(self, number: int, step: int, stream: Stream) -> None:
        trained = dict.fromkeys(name for stage in self.stages[: number + 1] for name in stage.lr)
        state = {
            "stage": number,
            "stage_name": self.stages[number].name,
            "step": step,
            "total": self.total,
            "stream": stream.state_dict(),
            "ledger": self.ledger.to_dict(),
        }
        tensors = {
            "model": checkpoint.state_of(self.model, trained),
            "optimizer": self.optimizer.tensors(),
            "random": {"torch": torch.get_rng_state()},
        }
        checkpoint.save(self.folder / "checkpoints" / f"step-{self.total}", tensors, state)
        checkpoint.prune(self.folder / "checkpoints", self.keep)

    def restore(self) -> Position | None:
        """Load the newest complete checkpoint; where it stands, or None if there is none."""
        place = checkpoint.newest(self.folder / "checkpoints")
        if place is None:
            return None
        state = checkpoint.read_json(place / "state.json")
        number = state["stage"]
        names = [stage.name for stage in self.stages]
        if number >= len(names) or names[number] != state["stage_name"]:
            raise CheckpointError(
                f"{place}: was saved in stage '{state['stage_name']}', but the recipe's stages are "
                f"{', '.join(names)}; resume with the recipe saved beside it"
            )
        checkpoint.load_state(
            self.model, checkpoint.read_tensors(place / "model.safetensors"), place
        )
        self._saved_optimizer = checkpoint.read_tensors(place / "optimizer.safetensors")
        self._saved_stream = state["stream"]
        torch.set_rng_state(checkpoint.read_tensors(place / "random.safetensors")["torch"])
        self.ledger = Ledger.from_dict(state["ledger"])
        self.total = state["total"]
        return Position(number, state["step"], state["total"])


class _Window:
    """Means and rates over the steps since the last log line."""

    def __init__(self) -> None:
        self._records: list[dict[str, float]] = []
        self._seconds = 0.0

    def add(self, record: dict[str, float], seconds: float) -> None:
        self._records.append(record)
        self._seconds += seconds

    def flush(self) -> dict[str, float]:
        sums = ("tokens", "images", "flops")
        line: dict[str, float] = {}
        for name in dict.fromkeys(key for record in self._records for key in record):
            values = [r[name] for r in self._records if name in r]
            if name in sums:
                line[name] = sum(values)
            elif name.startswith("lr/"):
                line[name] = values[-1]
            else:
                line[name] = sum(values) / len(values)
        for name in sums:
            line[f"{name}_per_second"] = line[name] / max(1e-9, self._seconds)
        line["seconds"] = self._seconds
        self._records, self._seconds = [], 0.0
        return line
