"""Time, money and memory of a stage on a cluster, and a way to make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from chiasm.plan.flops import Work
from chiasm.plan.hardware import Cluster
from chiasm.plan.memory import Memory, Saved, Sharding, Weights, memory

DECODING = 500.0
"""Images a second that a core decodes (JPEG of half a megapixel, Pillow)."""

ROOM = 0.95
"""Share of a GPU's memory that a plan fills."""


@dataclass(frozen=True)
class Estimate:
    """A stage on a cluster. seconds: of the whole stage at the assumed MFU, without waiting for
    data or the network. sent: bytes that a GPU sends in a step over the slowest link it
    has to use."""

    cluster: Cluster
    sharding: Sharding
    memory: Memory
    seconds: float
    step_seconds: float
    sent: float
    images_per_second: float

    @property
    def fits(self) -> bool:
        return self.memory.total <= ROOM * self.cluster.kind.memory

    @property
    def gpu_hours(self) -> float:
        return self.seconds / 3600 * self.cluster.count

    @property
    def network_share(self) -> float:
        """Of a step's time, were nothing sent while computing."""
        link = self.cluster.kind.link if self.cluster.nodes > 1 else 10 * self.cluster.kind.link
        return self.sent / link / self.step_seconds

    @property
    def decoding_cores(self) -> float:
        """Cores a GPU that keep up with the images."""
        return self.images_per_second / DECODING / self.cluster.count


def shardings(cluster: Cluster, tensor: int = 1) -> Iterator[Sharding]:
    """From the least that is sent to the least that is held; of blocks that so many neighbours
    compute together, that alone."""
    for recompute in (False, True):
        if tensor > 1:
            yield Sharding("tensor", 1, cluster.count // tensor, recompute, tensor)
            continue
        yield Sharding("DDP", 1, cluster.count, recompute)
        if cluster.nodes > 1 and cluster.count % cluster.nodes == 0:
            yield Sharding("HSDP", cluster.count // cluster.nodes, cluster.nodes, recompute)
        if cluster.count > 1:
            yield Sharding("FSDP2", cluster.count, 1, recompute)


def estimate(
    work: Work, weights: Weights, saved: Saved, cluster: Cluster, sharding: Sharding, mfu: float
) -> Estimate:
    """saved: of one micro-batch. Recomputing costs another forward, which is no part of MFU's
    FLOPs but of the time: a third more (1604.06174)."""
    flops = work.per_step * (4 / 3 if sharding.recompute else 1)
    feeds = cluster.count // sharding.tensor  # that see different data
    rounds = -(-work.micro_batches // feeds)  # a GPU's micro-batches a step
    idle = rounds * feeds / work.micro_batches  # the last round may not be full
    step = flops * idle / (cluster.count * cluster.kind.peak * mfu)
    return Estimate(
        cluster,
        sharding,
        memory(weights, sharding, saved),
        step * work.steps,
        step,
        _sent(weights, sharding, rounds, saved, cluster),
        work.images * work.micro_batches / step,
    )


def _sent(
    weights: Weights, sharding: Sharding, rounds: int, saved: Saved, cluster: Cluster
) -> float:
    """Gradients are added up once a step: twice their bytes in a ring. In parts, weights are
    fetched for the forward and the backward pass of every micro-batch and gradients sent back.
    Neighbours add up activations twice a block in either pass, inside a machine if they can."""
    everything = 4.0 * (weights.trained + weights.frozen)
    if sharding.parts == 1:
        gradients = 2 * 4.0 * weights.trained if sharding.replicas > 1 else 0.0
        if sharding.tensor == 1 or (cluster.nodes > 1 and sharding.tensor <= cluster.kind.node):
            return gradients
        added = 2 * (1 - 1 / sharding.tensor) * sum(saved.inputs) / 2  # in bfloat16, of fp32
        return gradients + rounds * 4 * added
    inside = rounds * (2 * everything + 4.0 * weights.trained)
    if sharding.name == "HSDP":  # the groups are machines: between them go gradients alone
        return rounds * 2 * 4.0 * weights.trained / sharding.parts
    return inside


@dataclass(frozen=True)
class Proposal:
    """How to run a stage: micro-batches of so many times the planned one, how many a step."""

    estimate: Estimate
    factor: float
    micro_batches: int


def fit(
    work: Work,
    weights: Weights,
    saved: Saved,
    cluster: Cluster,
    mfu: float,
    smallest: float,
    tensor: int = 1,
) -> Proposal | None:
    """The first sharding, from the one that sends least, in which micro-batches of at least
    `smallest` of the planned size fit, as large as they may get while every GPU has one. None:
    nothing fits."""
    even = work.micro_batches * tensor / cluster.count  # of the planned, a GPU's in a step
    for sharding in shardings(cluster, tensor):
        empty = memory(weights, sharding, saved.times(0.0))
        each = memory(weights, sharding, saved).step - empty.step
        room = ROOM * cluster.kind.memory
        most = (room - empty.step) / max(1.0, each)
        if most < smallest or empty.total > room:
            continue
        rounds = max(1, math.ceil(even / most))
        factor = max(smallest, even / rounds)
        count = max(1, round(work.micro_batches / factor))
        changed = Work(
            int(work.tokens * factor),
            max(1, int(work.images * factor)),
            {name: value * factor for name, value in work.parts.items()},
            count,
            work.steps,
        )
        found = estimate(changed, weights, saved.times(factor), cluster, sharding, mfu)
        return Proposal(found, factor, count)
    return None
