"""Matrices of blocks held in slices by neighbouring ranks (Megatron-LM, 1909.08053, section 3).

Queries, keys, values, gate and up are cut by rows, what follows them by columns: each rank computes
some heads and some hidden units of every token, and the parts are added up twice a block. Ranks
that hold slices of one model see the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from chiasm.core.errors import ConfigError
from chiasm.nn.block import Block
from chiasm.train.fsdp import full
from chiasm.train.parallel import World
from chiasm.train.stage import Ranks

ROWS, COLUMNS, HEADS = "rows", "columns", "heads"
LAYERS = {
    "self_attn.q_proj": ROWS,
    "self_attn.k_proj": ROWS,
    "self_attn.v_proj": ROWS,
    "self_attn.q_norm": HEADS,
    "self_attn.k_norm": HEADS,
    "self_attn.o_proj": COLUMNS,
    "mlp.gate_proj": ROWS,
    "mlp.up_proj": ROWS,
    "mlp.down_proj": COLUMNS,
}
ENTERS: dict[str, Placement] = {ROWS: Replicate(), COLUMNS: Shard(-1), HEADS: Shard(2)}
"""How what each rank gives to a layer makes up the whole: all have it, or a slice of it."""


def split(
    model: Any, world: World, ranks: Ranks, device: torch.device
) -> tuple[Split | None, World]:
    """Split a model's blocks in place over every ranks.tensor_parallel neighbours; and the world
    of those that hold the same slices, which share the data out. ConfigError where it cannot be
    split so."""
    if world.size == 1 or ranks.tensor_parallel == 1:
        return None, world
    if world.size % ranks.tensor_parallel:
        raise ConfigError(
            f"ranks.tensor_parallel: {ranks.tensor_parallel}, but {world.size} ranks cannot be "
            "split evenly into groups of so many; choose a divisor"
        )
    layers = slices(model, ranks.tensor_parallel)
    model.to(device)
    shape = (world.size // ranks.tensor_parallel, ranks.tensor_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
    data = World(mesh["data"].get_local_rank(), shape[0], mesh["data"].get_group())
    return Split(layers, mesh["tensor"]), data


def slices(model: Any, parts: int) -> list[tuple[nn.Module, str]]:
    """Layers of a model's blocks that `parts` ranks hold in slices, and how each is cut.
    ConfigError where they cannot."""
    blocks = model.blocks()
    if not all(isinstance(block, Block) for block in blocks):
        raise ConfigError(
            "ranks.tensor_parallel: only the unified model's blocks can be split; set it to 1 and "
            "ranks.fsdp_min_params to 0, which holds any model in parts"
        )
    for block in blocks:
        _check(block, parts)
    return [(b.get_submodule(name), how) for b in blocks for name, how in LAYERS.items()]


def _check(block: Block, parts: int) -> None:
    attention = block.self_attn
    keys = attention.k_proj.out_features // attention.size
    hidden = block.mlp.gate_proj.out_features
    for name, count in (("kv_heads", keys), ("intermediate_size", hidden)):
        if count % parts:
            raise ConfigError(
                f"ranks.tensor_parallel: {parts} ranks cannot share model.{name} {count} evenly; "
                "choose a divisor"
            )


class Split:
    """Layers in slices over a mesh of one dimension; all ranks of it run them together."""

    def __init__(self, layers: Sequence[tuple[nn.Module, str]], mesh: DeviceMesh):
        self.mesh, self.layers = mesh, layers
        for layer, how in self.layers:
            for name, whole in list(layer.named_parameters(recurse=False)):
                cut = Shard(1 if how == COLUMNS else 0)
                held = distribute_tensor(whole.detach(), mesh, [cut], src_data_rank=None)
                _replace(layer, name, held)
        self._handles: list[Any] = []
        self._join_in()

    def _join_in(self) -> None:
        for layer, how in self.layers:
            if any(True for _ in layer.parameters(recurse=False)):
                enter = layer.register_forward_pre_hook(partial(self._enter, ENTERS[how]))
                leave = layer.register_forward_hook(self._leave_summed if how == COLUMNS else _own)
                self._handles += [enter, leave]

    def _enter(self, placement: Placement, _layer: nn.Module, inputs: tuple) -> DTensor:
        return DTensor.from_local(inputs[0], self.mesh, [placement], run_check=False)

    def _leave_summed(self, _layer: nn.Module, _inputs: tuple, output: DTensor) -> Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()

    @torch.no_grad()
    def rejoin(self) -> None:
        """Plain whole parameters again, for good."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer, _ in self.layers:
            for name, held in list(layer.named_parameters(recurse=False)):
                _replace(layer, name, full(held))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All of it on every rank for a while, so that no rank waits for another."""
        held = [(layer, list(layer.named_parameters(recurse=False))) for layer, _ in self.layers]
        self.rejoin()
        try:
            yield
        finally:
            for layer, parameters in held:
                for name, parameter in parameters:
                    setattr(layer, name, parameter)
            self._join_in()


def _own(_layer: nn.Module, _inputs: tuple, output: DTensor) -> Tensor:
    return output.to_local()


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    """With what was written on the parameter before (train/optim.py reads it)."""
    before = getattr(layer, name)
    made = nn.Parameter(value, before.requires_grad)
    vars(made).update(vars(before))
    setattr(layer, name, made)
