"""Bytes a GPU holds at the fullest moment of a step, by what they are for.

What the engine keeps: weights, gradients and averages in fp32; where a model is whole on every rank
frozen weights in bfloat16, but between steps (a stage begins, evaluates or saves) in fp32, which
waits in main memory; bfloat16 copies of trained matrices, which autocast makes and the backward
pass needs. Activations are not estimated by a formula: the blocks are run on
tensors without storage, and what autograd saves is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

OVERHEAD = 1.5e9
"""CUDA's context and libraries, NCCL's buffers."""

FRAGMENTS = 1.05
"""The allocator's losses."""


@dataclass(frozen=True)
class Sharding:
    """name: "DDP", "FSDP2", "HSDP" or "tensor". parts: GPUs that each hold a part of every weight.
    replicas: such groups, or copies of the model. recompute: blocks run again in the backward pass.
    tensor: neighbours that compute every block together (train/tensor_parallel.py); parts is then
    1."""

    name: str
    parts: int
    replicas: int
    recompute: bool = False
    tensor: int = 1

    def __str__(self) -> str:
        shared = max(self.parts, self.tensor)
        over = f" over {shared}" if shared > 1 else ""
        groups = f", {self.replicas} groups" if self.name in ("HSDP", "tensor") else ""
        return f"{self.name}{over}{groups}{', recompute' if self.recompute else ''}"


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters; of a model whose blocks are in slices, those of one GPU. trained,
    frozen; moments: of the optimiser, floats a trained parameter; averaged: an EMA is kept;
    largest: parameters of the largest unit that is gathered at a time."""

    trained: int
    frozen: int
    moments: float
    averaged: bool
    largest: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. restored: what weights take more between steps, when there are no
    activations."""

    weights: float
    copies: float
    gradients: float
    optimizer: float
    activations: float
    overhead: float = OVERHEAD
    restored: float = 0.0

    @property
    def total(self) -> float:
        """At the fullest moment."""
        held = self.weights + self.gradients + self.optimizer + self.restored
        return max(self.step, FRAGMENTS * held + self.overhead)

    @property
    def step(self) -> float:
        """In a step, which grows in proportion to its activations."""
        held = self.weights + self.copies + self.gradients + self.optimizer + self.activations
        return FRAGMENTS * held + self.overhead


def memory(weights: Weights, sharding: Sharding, saved: Saved) -> Memory:
    """What one GPU holds; saved: by the micro-batch that runs on it, with weights of slices of the
    blocks where sharding.tensor is more than 1."""
    everything, parts = weights.trained + weights.frozen, sharding.parts
    whole = parts == 1
    held = 4.0 * everything / parts
    # Whole: frozen weights are lowered, if every weight is. In parts: two units in full, the one
    # that computes and the one that is fetched.
    lowered = 2.0 * weights.frozen if whole and sharding.tensor == 1 else 0.0
    held += -lowered if whole else 2 * 4.0 * weights.largest
    copies = saved.largest_copies if sharding.recompute else saved.copies
    averaged = 4.0 * weights.trained / parts * weights.averaged
    return Memory(
        held,
        copies,
        4.0 * weights.trained / parts + (0 if whole else 4.0 * weights.largest),
        4.0 * weights.moments * weights.trained / parts + averaged,
        saved.recomputed if sharding.recompute else saved.activations,
        restored=lowered,
    )


@dataclass
class Saved:
    """Bytes that autograd saves: activations by block (`rest` outside of blocks), inputs of the
    blocks, and bfloat16 copies of weights."""

    blocks: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    rest: float = 0.0
    copies: float = 0.0
    largest_copies: float = 0.0

    @property
    def activations(self) -> float:
        return sum(self.blocks) + self.rest

    @property
    def recomputed(self) -> float:
        return sum(self.inputs) + max(self.blocks, default=0.0) + self.rest

    def times(self, factor: float) -> Saved:
        """Of a micro-batch so many times as large; weights stay as they are."""
        return Saved(
            [factor * b for b in self.blocks],
            [factor * b for b in self.inputs],
            factor * self.rest,
            self.copies,
            self.largest_copies,
        )

    def plus(self, other: Saved) -> Saved:
        return Saved(
            self.blocks + other.blocks,
            self.inputs + other.inputs,
            self.rest + other.rest,
            self.copies + other.copies,
            max(self.largest_copies, other.largest_copies),
        )


def without_storage() -> FakeTensorMode:
    """A context in which tensors have shapes and no numbers: a model of any size is built in a
    moment. It may be entered again, for what was made in it."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def measure(
    work: Callable[[], Any],
    model: nn.Module,
    blocks: Sequence[nn.Module],
    branches: Sequence[nn.Module] = (),
    neighbours: int = 1,
) -> Saved:
    """What autograd saves while `work` runs the model forward; every tensor's storage counts once,
    parameters not at all. branches: modules in the blocks of which each of so many neighbours
    computes its part, from an input that all of them hold whole."""
    saved = Saved([0.0] * len(blocks), [0.0] * len(blocks))
    parameters = {_storage(p) for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if p.dim() >= 2}
    shapes |= {shape[::-1] for shape in shapes}
    seen: dict[int, Tensor] = {}  # kept, so that no address is given out twice
    inside: list[int] = []
    given: list[int] = []  # the input of the branch that is running
    copies = [0.0] * (len(blocks) + 1)

    def keep(tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place in parameters or place in seen:
            return tensor
        seen[place] = tensor
        size = float(tensor.untyped_storage().nbytes())
        if given and place not in given:
            size /= neighbours
        if tuple(tensor.shape) in shapes and tensor.dtype != torch.float32:
            copies[inside[-1] if inside else -1] += size
        elif inside:
            saved.blocks[inside[-1]] += size
        else:
            saved.rest += size
        return tensor

    def enter(number: int) -> Callable:
        def hook(_module: nn.Module, args: tuple) -> None:
            inside.append(number)
            first = args[0]
            saved.inputs[number] += first.numel() * first.element_size()

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    handles = [b.register_forward_pre_hook(enter(i)) for i, b in enumerate(blocks)]
    handles += [b.register_forward_hook(leave) for b in blocks]
    for branch in branches:
        handles.append(branch.register_forward_pre_hook(lambda _, x: given.append(_storage(x[0]))))
        handles.append(branch.register_forward_hook(lambda *_: given.clear()))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kept = work()
        del kept
    finally:
        for handle in handles:
            handle.remove()
    saved.copies = sum(copies)
    saved.largest_copies = max(copies[:-1], default=0.0) + copies[-1]
    return saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
