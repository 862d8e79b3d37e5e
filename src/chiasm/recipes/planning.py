"""chiasm plan: what a recipe costs before it runs, on what it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from chiasm.core.batch import round_up
from chiasm.core.errors import ConfigError
from chiasm.plan.estimate import Estimate, Proposal, estimate, fit
from chiasm.plan.flops import Work, work_of
from chiasm.plan.hardware import Cluster
from chiasm.plan.memory import Saved, Sharding, Weights, measure, without_storage
from chiasm.recipes.meta_model import Assumed, Outline, forward, outline_of, typical
from chiasm.recipes.recipe import Recipe, batch_unit
from chiasm.train.optim import set_trained
from chiasm.train.stage import Ranks, Stage, Unit
from chiasm.train.tensor_parallel import slices

MEASURED = 4096
"""Tokens of the batch that activations are measured on: longer ones are like it, only longer."""


@dataclass(frozen=True)
class StagePlan:
    """A stage without a machine: what it computes, trains, holds and saves a micro-batch; smallest:
    one sample as a share of the micro-batch. tensor: neighbours that compute every block together,
    of whom weights and saved are one's."""

    stage: Stage
    work: Work
    trained: int
    frozen: int
    weights: Weights
    saved: Saved
    smallest: float
    tensor: int = 1


def plan_of(
    recipe: Recipe, assumed: Assumed, tensor: int = 1
) -> tuple[dict[str, int], list[StagePlan]]:
    """Parameters by group, and every stage's plan where so many neighbours compute every block
    together. Raises what training's set-up would."""
    for stage in recipe.stages:
        if stage.rollouts is not None:
            raise ConfigError(
                f"stage '{stage.name}': how long sampled replies are is known only by sampling; "
                "train a few steps, whose metrics say what a step costs"
            )
    shapes = without_storage()
    with shapes:
        outlined = outline_of(recipe.model, assumed)
    parameters = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in outlined.model.groups().items()
    }
    return parameters, [_stage(outlined, s, assumed, shapes, tensor) for s in recipe.stages]


def _stage(
    outlined: Outline, stage: Stage, assumed: Assumed, shapes: Any, tensor: int
) -> StagePlan:
    model = outlined.model
    set_trained(model, stage)
    batch = typical(outlined, stage, assumed)
    work = work_of(model, batch, stage.gradient_accumulation_steps, stage.steps)
    small = typical(outlined, _shrunk(stage, work, batch_unit(outlined.config, stage)), assumed)
    pass_of_it = forward(outlined, small)
    sliced = slices(model, tensor) if tensor > 1 else []
    branches = [m for b in model.blocks() for m in (b.self_attn, b.mlp)] if sliced else []
    with shapes:
        saved = measure(pass_of_it, model, model.blocks(), branches, tensor)
    saved = saved.times(work.tokens / max(1, int(small.tokens)))
    one = typical(outlined, stage.with_batch_size(batch_unit(outlined.config, stage), 1), assumed)
    whole = _weights(model, stage)
    cut = {id(p): tensor for layer, _ in sliced for p in layer.parameters(recurse=False)}
    return StagePlan(
        stage,
        work,
        whole.trained,
        whole.frozen,
        _weights(model, stage, cut),
        saved,
        min(1.0, one.tokens / max(1, work.tokens)),
        tensor,
    )


def _shrunk(stage: Stage, work: Work, unit: Unit) -> Stage:
    """The stage with a batch of about MEASURED tokens or patches, if its own is larger."""
    share = min(1.0, MEASURED / max(1, work.tokens))
    return stage.with_batch_size(unit, max(1, int(stage.batch_size(unit) * share)))


def _weights(model: Any, stage: Stage, cut: Mapping[int, int] = MappingProxyType({})) -> Weights:
    """Of the model, with parameters by their id counted as one of so many slices."""

    def count(parameters: Iterable[Tensor]) -> int:
        return sum(p.numel() // cut.get(id(p), 1) for p in parameters)

    parameters = list(model.parameters())
    trained = count(p for p in parameters if p.requires_grad)
    units = model.units() if hasattr(model, "units") else model.blocks()
    inside = {id(p) for unit in units for p in unit.parameters()}
    rest = count(p for p in parameters if id(p) not in inside)
    largest = max([rest, *(count(unit.parameters()) for unit in units)])
    # Muon keeps one moment of the matrices inside blocks, AdamW two of everything.
    moments = 2.0
    if stage.optimizer == "muon" and trained:
        blocks = {id(p) for b in model.blocks() for p in b.parameters()}
        one = count(p for p in parameters if p.requires_grad and p.dim() == 2 and id(p) in blocks)
        moments -= one / trained
    return Weights(trained, count(parameters) - trained, moments, bool(stage.ema), largest)


def chosen_sharding(ranks: Ranks, weights: Weights, cluster: Cluster, recompute: bool) -> Sharding:
    """What the engine would do with a recipe's ranks (train/fsdp.py, train/tensor_parallel.py)."""
    if ranks.tensor_parallel > 1 and cluster.count > 1:
        if cluster.count % ranks.tensor_parallel:
            raise ConfigError(
                f"ranks.tensor_parallel: {ranks.tensor_parallel}, but {cluster.count} GPUs cannot "
                "be split evenly into groups of so many; choose a divisor"
            )
        return Sharding(
            "tensor", 1, cluster.count // ranks.tensor_parallel, recompute, ranks.tensor_parallel
        )
    if cluster.count == 1 or weights.trained + weights.frozen < ranks.fsdp_min_params:
        return Sharding("DDP", 1, cluster.count, recompute)
    if cluster.count % ranks.hsdp_replicas:
        raise ConfigError(
            f"ranks.hsdp_replicas: {ranks.hsdp_replicas} groups, but {cluster.count} GPUs cannot "
            "be split evenly; choose a divisor"
        )
    parts = cluster.count // ranks.hsdp_replicas
    name = "FSDP2" if ranks.hsdp_replicas == 1 else "HSDP"
    return Sharding(name, parts, ranks.hsdp_replicas, recompute)


def report(
    recipe: Recipe,
    cluster: Cluster | None,
    assumed: Assumed,
    mfu: float,
    price: float | None,
    propose: bool,
) -> None:
    """Print the plan."""
    console = Console(soft_wrap=True, highlight=False, width=max(120, Console().width))
    tensor = recipe.ranks.tensor_parallel if cluster and cluster.count > 1 else 1
    parameters, stages = plan_of(recipe, assumed, tensor)
    total = sum(parameters.values())
    each = ", ".join(f"{name} {_number(n)}" for name, n in parameters.items())
    console.print(f"[bold]{_number(total)} parameters[/bold]: {each}")
    width, height = assumed.image_size
    console.print(
        f"supposed: {assumed.text_tokens} words a sample, {assumed.images_per_sample} image(s) of "
        f"{width}x{height}" + (f"; {mfu:.0%} of the data sheet's peak (--mfu)" if cluster else "")
    )
    console.print(_work_table(stages))
    if cluster is None:
        console.print("hours and memory: add --gpus 8xH100")
        return
    estimates = [
        estimate(
            s.work,
            s.weights,
            s.saved,
            cluster,
            chosen_sharding(recipe.ranks, s.weights, cluster, s.stage.gradient_checkpointing),
            mfu,
        )
        for s in stages
    ]
    console.print(_cluster_table(stages, estimates))
    _say_sum(console, estimates, price)
    for number, (s, e) in enumerate(zip(stages, estimates, strict=True)):
        _say_remarks(console, s, e)
        if propose or not e.fits:
            found = fit(s.work, s.weights, s.saved, cluster, mfu, s.smallest, tensor)
            _say_proposal(console, number, s, found, batch_unit(recipe.model, s.stage))


def _work_table(stages: list[StagePlan]) -> Table:
    table = Table(box=None, pad_edge=False)
    heads = ("stage", "trained", "frozen", "tokens/step", "images/step", "FLOP/token", "vision")
    for head in (*heads, "FLOP/step", "FLOP"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for s in stages:
        w = s.work
        seen = w.parts.get("vision", w.parts.get("encoder", 0.0)) / w.flops
        table.add_row(
            s.stage.name,
            _number(s.trained),
            _number(s.frozen),
            f"{w.tokens * w.micro_batches:,}",
            f"{w.images * w.micro_batches:,}",
            _number(w.per_token),
            f"{seen:.0%}",
            f"{w.per_step:.3g}",
            f"{w.total:.3g}",
        )
    return table


def _cluster_table(stages: list[StagePlan], estimates: list[Estimate]) -> Table:
    table = Table(box=None, pad_edge=False, title=str(estimates[0].cluster), title_justify="left")
    heads = ("weights", "copies", "gradients", "optimizer", "activations", "GB a GPU", "fits")
    for head in ("stage", "sharding", *heads, "hours"):
        table.add_column(head, justify="left" if head in ("stage", "sharding") else "right")
    for s, e in zip(stages, estimates, strict=True):
        m = e.memory
        held = (m.weights, m.copies, m.gradients, m.optimizer, m.activations, m.total)
        table.add_row(
            s.stage.name,
            str(e.sharding),
            *(f"{part / 1e9:.1f}" for part in held),
            "yes" if e.fits else "[red]no[/red]",
            f"{e.seconds / 3600:.3g}",
        )
    return table


def _say_sum(console: Console, estimates: list[Estimate], price: float | None) -> None:
    hours = sum(e.seconds for e in estimates) / 3600
    cluster = estimates[0].cluster
    rate = cluster.kind.price if price is None else price
    gpu_hours = hours * cluster.count
    console.print(
        f"[bold]{hours:.3g} hours[/bold], {gpu_hours:.3g} GPU-hours, about "
        f"${gpu_hours * rate:,.0f} at ${rate:g} an hour (--price)"
    )


def _say_remarks(console: Console, s: StagePlan, e: Estimate) -> None:
    name, count = s.stage.name, e.cluster.count // s.tensor
    if s.work.micro_batches % count:
        wanted = round_up(s.work.micro_batches, count)
        on = f"{count} GPUs" if s.tensor == 1 else f"{count} groups of {s.tensor} GPUs"
        console.print(
            f"{name}: {s.work.micro_batches} micro-batches a step on {on}: training raises "
            f"them to {wanted} (a larger step); set "
            "--stages.N.gradient_accumulation_steps and batch_tokens to keep it"
        )
    if e.network_share > 0.5:
        console.print(f"{name}: the network needs {e.network_share:.0%} of the time of a step")
    if e.decoding_cores >= 1:
        console.print(f"{name}: images keep {e.decoding_cores:.0f} cores a GPU busy decoding")


def _say_proposal(
    console: Console, number: int, s: StagePlan, found: Proposal | None, unit: Unit
) -> None:
    name = s.stage.name
    if found is None:
        console.print(
            f"{name}: fits in no sharding, one sample a GPU; take more GPUs, or train less of it"
        )
        return
    e = found.estimate
    ranks = "1000000000000" if e.sharding.parts == 1 else "0"
    flags = [f"--ranks.fsdp_min_params {ranks}"]
    if e.sharding.name == "tensor":
        flags = [f"--ranks.tensor_parallel {e.sharding.tensor}"]
    if e.sharding.name == "HSDP":
        flags.append(f"--ranks.hsdp_replicas {e.sharding.replicas}")
    size = max(1, round(s.stage.batch_size(unit) * found.factor))
    flags.append(f"--stages.{number}.batch_{unit} {size}")
    flags.append(f"--stages.{number}.gradient_accumulation_steps {found.micro_batches}")
    if e.sharding.recompute:
        flags.append(f"--stages.{number}.gradient_checkpointing true")
    console.print(
        f"{name}: {e.sharding}, {e.memory.total / 1e9:.0f} GB a GPU, {e.seconds / 3600:.3g} hours:"
        f"\n  {' '.join(flags)}"
    )


def _number(value: float) -> str:
    """Three digits and a letter: 7.06B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
