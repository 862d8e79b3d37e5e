"""The training loop of the encoder, the autoencoder, the MLLM and the unified model alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication

from chiasm.core import aliases
from chiasm.core.device import model_device, use
from chiasm.core.errors import CheckpointError, DivergedError, InterruptedRunError
from chiasm.core.progress import Bar, Show, silent
from chiasm.core.protocols import Stream, Trainable
from chiasm.nn.eval_mode import evaluating
from chiasm.nn.precision import LoweredWeights, autocast, working_dtype
from chiasm.train import checkpoint
from chiasm.train.async_checkpoint import Writer
from chiasm.train.callbacks import Callback
from chiasm.train.compiled import compiled, eager
from chiasm.train.divergence_report import first_grown, output_sizes
from chiasm.train.ema import EMA
from chiasm.train.evaluation import (
    EvalContext,
    Evaluate,
    ExampleFolder,
    check_best,
    check_stages,
    examples_of,
    gather,
    rng_preserved,
    summary,
)
from chiasm.train.feature_cache import remembered
from chiasm.train.fsdp import own, rejoin, shard, total_norm, whole
from chiasm.train.guard import Guard, Verdict
from chiasm.train.log import Entry, Ledger, Metrics
from chiasm.train.loggers import Sink
from chiasm.train.micro_batches import Feed, micro_batch_count
from chiasm.train.monitor import Monitor, said
from chiasm.train.objective import Objective
from chiasm.train.optim import Optimizers, make_optimizer, set_trained
from chiasm.train.parallel import World, current
from chiasm.train.recompute import recomputed
from chiasm.train.schedule import factor
from chiasm.train.signals import Interruption
from chiasm.train.stage import Ranks, Stage
from chiasm.train.step_stats import Tally, Window, fetched, tally
from chiasm.train.tensor_parallel import Split, split
from chiasm.train.throughput import in_words, memory_in_use, peak_memory, peak_rate, use_of

OpenSinks = Callable[[int], Sequence[Sink]]
"""Opens the sinks of a run that begins after this step."""


@dataclass
class Position:
    """Where a run stands: stage number, step within it, step of the whole run."""

    stage: int = 0
    step: int = 0
    total: int = 0


class _HaltError(Exception):
    """A rank has been told to stop; raised between two micro-batches on all of them."""


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
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen
    sinks: OpenSinks | None = None,
    device: torch.device | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate_first: bool = False,
) -> Ledger:
    """Run the stages and leave metrics.jsonl, cost.json and checkpoints in `folder`.

    stream_of makes the endless batch stream of a stage. resume continues from the newest complete
    checkpoint in `folder`, bit for bit on CPU; without one it starts afresh. evaluate is called
    every stage.evaluate_every steps and at the stage's end; its metrics are logged as eval/<name>,
    its answers and drawings kept in samples/ (train/evaluation.py). Steps whose loss or
    gradient is not finite never reach the weights: see train/guard.py. SIGTERM and SIGINT end in a
    checkpoint and an InterruptedRunError. sinks opens further places for the metrics, given the
    resumed step. In a world of several ranks (train/parallel.py) all of them call this together.
    device: where the model is moved to and stays; by default it is trained where it is. callbacks:
    called by the main rank (train/callbacks.py). evaluate_first: evaluate before the first step
    too, as the first stage that evaluates does; logged as step 0.
    """
    assert isinstance(model, nn.Module)
    check_stages(stages, evaluate)
    device = device or model_device(model)
    use(device)
    world = current()
    folder.mkdir(parents=True, exist_ok=True)
    trainer = _Trainer(model, stages, stream_of, folder, evaluate, keep, show, world, seed)
    world.broadcast([*model.parameters(), *model.buffers()])
    trainer.share_out(ranks, device)
    start = trainer.restore(resume)
    trainer.open_metrics(start.total, sinks, callbacks)
    try:
        with trainer.stop:
            if evaluate_first and not start.total:
                trainer.evaluate_start()
            for number in range(start.stage, len(stages)):
                trainer.run_stage(number, start.step if number == start.stage else 0)
        trainer.write_ledger()
    finally:
        trainer.close()
    if trainer.split:
        trainer.split.rejoin()
    elif trainer.sharded:
        rejoin(model)
    model.eval()
    return trainer.ledger


class _Trainer:
    def __init__(
        self,
        model: Any,
        stages: Sequence[Stage],
        stream_of: Callable[[Stage], Stream],
        folder: Path,
        evaluate: Evaluate | None,
        keep: int,
        show: Show,
        world: World,
        seed: int,
    ):
        self.model, self.stages, self.stream_of, self.folder = model, stages, stream_of, folder
        self.evaluate, self.show = evaluate, show if world.is_main else silent
        self.world, self.seed = world, seed
        self.data = world
        """The ranks that see different data, of which this is one."""
        self.split: Split | None = None
        self.sharded = False
        self.ledger, self.stop = Ledger(), Interruption()
        self.writer = Writer(folder / "checkpoints", keep, self.warn, self.checkpointed)
        self.number, self.total = 0, 0
        self.ranks = world.size
        self.best: float | None = None
        self.score: float | None = None
        self.evaluated = ""
        """The latest evaluation, for the live view."""
        self.metrics: Metrics
        self.examples: ExampleFolder | None = None
        self.optimizer: Optimizers
        self.guard: Guard
        self.feed: Feed
        self.ema: EMA | None = None
        self.objective: Objective
        self.healthy: Any = None
        self._place: Path | None = None

    @property
    def device(self) -> torch.device:
        return model_device(self.model)

    def share_out(self, ranks: Ranks, device: torch.device) -> None:
        """Divide the model among the ranks as it is asked for, or as it is large; on the device."""
        self.split, self.data = split(self.model, self.world, ranks, device)
        self.ranks = self.data.size
        if self.split is None:
            self.sharded = shard(self.model, self.world, ranks, device)
        if not self.in_parts:
            # Parts were made on the device; moved again they would be new parameters, without what
            # train/optim.py reads of them (frozen layers, widths of μP).
            self.model.to(device)

    @property
    def in_parts(self) -> bool:
        """Whether some parameter is not whole on this rank."""
        return self.sharded or self.split is not None

    def open_metrics(
        self, resumed_step: int, sinks: OpenSinks | None, callbacks: Sequence[Callback]
    ) -> None:
        main = self.world.is_main
        opened = sinks(resumed_step) if main and sinks else ()
        self.metrics = Metrics(self.folder if main else None, resumed_step, opened, callbacks)
        self.examples = ExampleFolder(self.folder, resumed_step) if main else None

    def warn(self, text: str) -> None:
        self.metrics.warn(self.total, text)

    def checkpointed(self, step: int, folder: Path) -> None:
        self.metrics.saved(step, folder)

    def write_ledger(self) -> None:
        if self.world.is_main:
            try:
                self.ledger.write(self.folder)
            except OSError as error:
                self.warn(f"{self.folder}: cost.json could not be written ({error})")

    def close(self) -> None:
        try:
            self.writer.wait()
        finally:
            self.metrics.close()

    def evaluate_start(self) -> None:
        """Evaluate the model as it is before the first step."""
        first = next((stage for stage in self.stages if stage.evaluate_every), None)
        if first is not None:
            self._evaluate(first)

    def run_stage(self, number: int, first: int) -> None:
        stage = self.stages[number]
        self._set_up(number)
        self.model.train()
        for name, group in self.model.groups().items():
            if name not in stage.lr:  # a frozen codebook does not follow the data either
                group.eval()
        # Parts of weights are exchanged by the ranks as they are: those stay as they are.
        lowest = torch.float32 if self.in_parts else working_dtype(stage.autocast, self.device)
        lowered = LoweredWeights(self.model, lowest)
        try:
            with (
                nullcontext() if self.in_parts else remembered(self.model, stage),
                compiled(self.model.blocks() if stage.compile else ()),
                recomputed(self.model.blocks() if stage.gradient_checkpointing else ()),
            ):
                self._prepare_objective(stage, first)
                self._steps(number, first, lowered)
        finally:
            lowered.restore()
            self.feed.close()
            self.objective.close()
        if self.ema:
            self.ema.swap()
        self.ledger.stages[number].peak_memory = peak_memory(self.device)
        self.write_ledger()

    def _prepare_objective(self, stage: Stage, first: int) -> None:
        """Compute what the stage's loss needs of the weights as they are now: one pass over the
        batches to come."""
        if not self.objective.begin(self.model):
            return
        batches = Feed(lambda: self.stream_of(stage), self.feed.count, self.data, self.device)
        with self.show(f"{stage.name}: reference", stage.steps, first) as view:
            try:
                for _ in range(first, stage.steps):
                    for _, batch in batches.step():
                        if self.world.any(self.stop.requested):
                            return
                        with autocast(stage.autocast, self.device):
                            self.objective.see(self.model, batch)
                    view.advance()
            finally:
                batches.close()

    def _set_up(self, number: int) -> None:
        self.number, stage = number, self.stages[number]
        set_trained(self.model, stage)
        self.optimizer = make_optimizer(self.model, stage)
        owned = [p for group in self.optimizer.groups for p in group["params"]]
        self.ema = EMA(owned, stage.ema) if stage.ema else None
        self.guard, self.healthy, self.best = Guard(stage.guard), None, None
        count = micro_batch_count(stage.gradient_accumulation_steps, self.ranks, self.data)
        self.feed = Feed(lambda: self.stream_of(stage), count, self.data, self.device)
        precision = str(working_dtype(stage.autocast, self.device)).removeprefix("torch.")
        self.objective = Objective(stage, self.folder, number, precision, self.world, self.in_parts)
        entry = self.ledger.entry(number, stage.name)
        parameters = list(self.model.parameters())
        entry.trained_parameters = sum(p.numel() for p in parameters if p.requires_grad)
        entry.frozen_parameters = sum(p.numel() for p in parameters if not p.requires_grad)
        if self._place is not None:
            self._resume(self._place)
            self._place = None
        self.marks = self.feed.state()

    def _steps(self, number: int, first: int, lowered: LoweredWeights) -> None:
        stage, window, entry = self.stages[number], Window(), self.ledger.stages[number]
        status = ""
        dtype = working_dtype(stage.autocast, self.device)
        peak = peak_rate(self.device, dtype, self.world.size)
        with self.show(stage.name, stage.steps, first) as view:
            for step in range(first, stage.steps):
                began = time.perf_counter()
                try:
                    record = self._step(number, step, entry, lowered)
                except _HaltError:
                    self._halt(number, step, lowered)
                entry.seconds += time.perf_counter() - began
                window.add(record, time.perf_counter() - began)
                view.advance()
                last = step + 1 == stage.steps
                if last or _due(stage.log_every, step):
                    sums = window.flush()
                    line = {
                        "step": self.total,
                        "stage": stage.name,
                        **use_of(sums, peak),
                        "memory_gb": memory_in_use(self.device),
                        "skipped_steps": entry.skipped_steps,
                        "elapsed": self.ledger.seconds,
                    }
                    self.metrics.write(line)
                    status = in_words(line) + said(line)
                    view.status(self.evaluated + status)
                better, self.score = False, None
                due = stage.evaluate_every and (last or _due(stage.evaluate_every, step))
                if due and not self.world.any(self.stop.requested):
                    with lowered.restored():
                        better = self._evaluate(stage)
                    view.status(self.evaluated + status)
                if better or (stage.save_every and (last or _due(stage.save_every, step))):
                    self._save(number, step + 1, lowered)

    def _step(
        self, number: int, step: int, entry: Entry, lowered: LoweredWeights
    ) -> dict[str, float]:
        """One optimiser step over all micro-batches of all ranks; what happened, for the log."""
        stage = self.stages[number]
        scale = factor(stage, step)
        for group in self.optimizer.groups:
            group["lr"] = group["peak"] * scale
        self.optimizer.zero_grad()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        own, batches, waited = {}, {}, 0.0
        feed = self.feed.step()
        while True:
            if self.world.any(self.stop.requested):
                _put_back(buffers)
                raise _HaltError
            asked = time.perf_counter()
            data_shard, batch = next(feed, (None, None))
            waited += time.perf_counter() - asked
            if data_shard is None:
                break
            batches[data_shard] = batch
            own[data_shard] = self._micro_batch(stage, data_shard, batch)
        idle = all(row["idle"] for row in own.values())
        if not self.world.any(not idle):  # to the optimiser it is as unused as to one process
            for module in getattr(self.model, "idle", ()):
                module.zero_grad()
        gradients = self._gradients()
        own, norm = fetched((own, total_norm(gradients) if gradients else 0.0))
        done = tally(self.world.gather(own))
        if hasattr(self.model, "observe"):
            self.model.observe(done.means)
        monitor = None
        if _due(stage.monitor_every, step) and batches and not self.in_parts:
            monitor = Monitor(self.model, self.optimizer)
            with lowered.restored(), autocast(stage.autocast, self.device):
                monitor.before(next(iter(batches.values())))
        norm = self._update(stage, done, gradients, norm, batches, entry, buffers, lowered)
        watched = monitor.after() if monitor else {}
        self.world.broadcast(list(self.model.buffers()))
        self.marks = self.feed.state()
        entry.steps += 1
        entry.tokens += done.tokens
        entry.images += done.images
        entry.flops += done.flops
        self.total += 1
        rates = {f"lr/{g['name']}": g["lr"] for g in self.optimizer.groups}
        cost = {"tokens": done.tokens, "images": done.images, "flops": done.flops}
        cost["waited"] = waited
        return {"loss": done.loss, "grad_norm": norm, **done.means, **watched, **rates, **cost}

    def _micro_batch(self, stage: Stage, data_shard: int, batch: Any) -> dict:
        """Forward and backward of one micro-batch, and its sums."""
        # A function of the place and of nothing before it: dropout is the same for every number of
        # ranks, and after every resume.
        place = (self.seed, self.total, data_shard)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        with autocast(stage.autocast, self.device):
            loss = self.objective(self.model, batch)
        if loss.sum.requires_grad and (loss.count or self.sharded):
            loss.sum.backward()
        spent = self.model.cost(batch)
        cost = {"flops": spent.flops, "tokens": int(spent.tokens), "images": int(spent.images)}
        idle = bool(getattr(self.model, "idle", ()))
        sums = {"sum": loss.sum.detach(), "count": loss.count, "parts": loss.parts, "idle": idle}
        return sums | cost

    def _update(
        self,
        stage: Stage,
        done: Tally,
        gradients: list[Tensor],
        norm: float,
        batches: dict[int, Any],
        entry: Entry,
        buffers: list[tuple[Tensor, Tensor]],
        lowered: LoweredWeights,
    ) -> float:
        """Divide the summed gradients of this norm by the step's count, clip, and apply them if the
        guard says so; the norm of their mean before clipping."""
        if not done.count or not gradients:
            entry.skipped_steps += 1
            return 0.0
        # FSDP leaves the mean over ranks, of which we want the sum.
        share = (self.world.size if self.sharded else 1) / done.count
        norm *= share
        verdict = self.guard.judge(done.loss, norm, lambda: self._earlier() is not None)
        if verdict.action == "apply":
            clipped = min(1.0, stage.max_grad_norm / (norm + 1e-6)) if stage.max_grad_norm else 1.0
            torch._foreach_mul_([own(g) for g in gradients], share * clipped)
            with implicit_replication() if self.split else nullcontext():
                self.optimizer.step()
            if self.ema:
                self.ema.update()
            self.healthy = next(iter(batches.values()))
            return norm
        entry.skipped_steps += 1
        _put_back(buffers)
        with lowered.restored():
            self._refuse(stage, verdict, done, batches)
        return norm

    def _gradients(self) -> list[Tensor]:
        """What the optimiser will see, added up over the ranks."""
        owned = [p for group in self.optimizer.groups for p in group["params"]]
        if self.data.size > 1 and not self.sharded:
            # A part that no rank used must look unused to the optimiser, as it does to one process.
            missing = [i for i, p in enumerate(owned) if p.grad is None]
            nowhere = set.intersection(*map(set, self.data.gather(missing)))
            used = [p for i, p in enumerate(owned) if i not in nowhere]
            for p in used:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.data.all_reduce([own(p.grad) for p in used if p.grad is not None])
        return [p.grad for p in owned if p.grad is not None]

    def _refuse(self, stage: Stage, verdict: Verdict, done: Tally, batches: dict[int, Any]) -> None:
        """Log what was wrong with which samples, and do what the guard decided."""
        worst = done.worst()
        finding: dict[str, Any] = {}
        if self.sharded or worst in batches:  # parts are gathered by all ranks together
            suspect = batches.get(worst, next(iter(batches.values())))
            with autocast(stage.autocast, self.device):
                now = output_sizes(self.model, suspect)
                before = output_sizes(self.model, self.healthy) if self.healthy is not None else {}
            layer = first_grown(before, now)
            finding = {"samples": list(getattr(suspect, "names", ())), "layer": layer}
        finding = self.data.gather(finding)[worst % self.data.size]
        record = {"guard": verdict.action, "reason": verdict.reason, **finding}
        self.metrics.write({"step": self.total + 1, "stage": stage.name, **record})
        if verdict.action == "rollback":
            place = self._earlier()
            assert place is not None
            tensors = checkpoint.read_tensors(place / "model.safetensors")
            checkpoint.load_state(self.model, tensors, place)
            self._load_optimizer(place, checkpoint.read_json(place / "state.json"))
            self.warn(f"{verdict.reason}; weights of {place.name} again, later data")
        elif verdict.action == "stop":
            raise DivergedError(
                f"stage '{stage.name}', step {self.total + 1}: {verdict.reason}, "
                f"{self.guard.settings.patience + 1} steps in a row; samples "
                f"{', '.join(finding['samples'][:8]) or 'without names'}; "
                f"the first layer that grew: {finding['layer'] or 'unknown'}; "
                "look at these samples, or lower the learning rate"
            )

    def _earlier(self) -> Path | None:
        """The checkpoint of this stage to go back to: the newest, and each time again one older."""
        self.writer.wait()
        found = []
        if self.world.is_main:
            for place in checkpoint.complete(self.writer.folder):
                if checkpoint.read_json(place / "state.json")["stage"] == self.number:
                    found.append(str(place))
        found = self.world.gather(found)[0]
        again = self.guard.rollbacks
        return Path(found[-min(len(found), max(1, again))]) if found else None

    def _halt(self, number: int, step: int, lowered: LoweredWeights) -> None:
        self._save(number, step, lowered)
        saved = self.writer.wait()
        self.write_ledger()
        raise InterruptedRunError(self.stop.number, self.total, saved) from None

    def _evaluate(self, stage: Stage) -> bool:
        """Log the evaluation; whether the checkpoint of this step would be the best. All ranks call
        it together: parts of weights are gathered and results added up, which no signal interrupts,
        while the evaluation in between is left at once."""
        assert self.evaluate is not None
        began, own = time.perf_counter(), None
        averaged = self.ema.applied() if self.ema else nullcontext()
        everything = self.split.whole() if self.split else whole(self.model)
        uncompiled = eager() if stage.compile else nullcontext()
        with (
            evaluating(self.model),
            averaged,
            everything,
            uncompiled,
            rng_preserved(self.device),
            self.stop.at_once(),
        ):
            own = self.evaluate(EvalContext(stage, self.total, self.world))
        result = gather(own, self.world)
        if result is None:
            return False
        metrics = result.metrics
        record = {f"eval/{name}": value for name, value in metrics.items()}
        record["eval/seconds"] = time.perf_counter() - began
        self.metrics.write({"step": self.total, "stage": stage.name, **record})
        self.evaluated = summary(metrics)
        if self.examples:
            self.metrics.show(self.total, examples_of(result))
            try:
                self.examples.write(self.total, result)
            except OSError as error:
                self.warn(f"{self.examples.folder}: examples could not be written ({error})")
        name = check_best(stage, list(metrics))
        if not name or math.isnan(metrics[name]):
            return False
        self.score = metrics[name] * (-1 if stage.best_metric.startswith("-") else 1)
        better = self.best is None or self.score > self.best
        self.best = self.score if better else self.best
        return better

    def _save(self, number: int, step: int, lowered: LoweredWeights) -> None:
        """Copy everything and let the writer write it; all ranks together."""
        trained = dict.fromkeys(name for stage in self.stages[: number + 1] for name in stage.lr)
        marks = {int(s): m for own in self.world.gather(self.marks) for s, m in own.items()}
        state = {
            "stage": number,
            "stage_name": self.stages[number].name,
            "step": step,
            "total": self.total,
            "ranks": self.ranks,
            "seed": self.seed,
            "data_shards": [marks[data_shard] for data_shard in sorted(marks)],
            "guard": self.guard.state_dict(),
            "best": self.best,
            "score": self.score,
            "ema_updates": self.ema.updates if self.ema else 0,
            "ledger": self.ledger.to_dict(),
            "objective": self.objective.state_dict(),
        }
        with lowered.restored():
            tensors = {
                "model": checkpoint.state_of(self.model, trained),
                "optimizer": self.optimizer.tensors(),
                "ema": self.ema.tensors() if self.ema else {},
            }
            main = self.world.is_main
            copies = {name: checkpoint.copied(part, main) for name, part in tensors.items()}
        self.score = None
        if self.world.is_main:
            self.writer.submit(self.total, copies, state)

    def restore(self, resume: bool) -> Position:
        """Load the newest complete checkpoint; where the run stands then. CheckpointError where one
        is there and not asked for."""
        found = checkpoint.newest(self.folder / "checkpoints") if self.world.is_main else None
        name = self.world.gather(str(found) if found else "")[0]
        if not name:
            return Position()
        place = Path(name)
        if not resume:
            raise CheckpointError(
                f"{self.folder}: holds the checkpoint {place.name} of an earlier run; continue it "
                "with --resume, or choose another folder"
            )
        state = checkpoint.read_json(place / "state.json")
        number = state["stage"]
        names = [stage.name for stage in self.stages]
        if number >= len(names) or names[number] != state["stage_name"]:
            raise CheckpointError(
                f"{place}: was saved in stage '{state['stage_name']}', but the recipe's stages are "
                f"{', '.join(names)}; resume with the recipe saved beside it"
            )
        tensors = checkpoint.read_tensors(place / "model.safetensors")
        checkpoint.load_state(self.model, tensors, place)
        self.ledger = Ledger.from_dict(state["ledger"])
        self.total, self.ranks, self.seed = state["total"], state["ranks"], state["seed"]
        self._place = place
        return Position(number, state["step"], state["total"])

    def _resume(self, place: Path) -> None:
        """What restore left for when the stage has been set up."""
        state = checkpoint.read_json(place / "state.json")
        self._load_optimizer(place, state)
        self.feed.load(aliases.keys(state, aliases.STATE)["data_shards"])
        self.guard.load_state_dict(state["guard"])
        self.objective.load_state_dict(state.get("objective", {}))
        self.best = state["best"]

    def _load_optimizer(self, place: Path, state: dict) -> None:
        self.optimizer.load_tensors(checkpoint.read_tensors(place / "optimizer.safetensors"))
        if self.ema:
            averages = checkpoint.read_tensors(place / "ema.safetensors")
            self.ema.load(averages, state["ema_updates"])


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    """Undo what a forward pass did to buffers (a codebook that follows its data)."""
    for buffer, before in buffers:
        buffer.copy_(before)


def _due(every: int, step: int) -> bool:
    return bool(every) and (step + 1) % every == 0
