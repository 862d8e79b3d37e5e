"""Models too large for one process: FSDP2, each unit of the model held in parts by all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from chiasm.core.errors import ConfigError
from chiasm.train.parallel import World
from chiasm.train.stage import Ranks


def shard(model: Any, world: World, ranks: Ranks, device: torch.device) -> bool:
    """Shard a model in place, on the ranks' devices, where it is large enough to need it; whether
    it was.

    Its units (model.units(), else its blocks) are gathered one at a time; what is left, together.
    """
    if world.size == 1 or sum(p.numel() for p in model.parameters()) < ranks.fsdp_min_params:
        return False
    if world.size % ranks.hsdp_replicas:
        raise ConfigError(
            f"ranks.hsdp_replicas: {ranks.hsdp_replicas}, but {world.size} ranks cannot be split "
            f"evenly into {ranks.hsdp_replicas} groups; choose a divisor"
        )
    # Imported here as it takes half a second, which who loads a model to use it need not wait.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    written = {name: vars(p) for name, p in model.named_parameters()}
    mesh = init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    if ranks.hsdp_replicas > 1:
        shape = (ranks.hsdp_replicas, world.size // ranks.hsdp_replicas)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    for unit in model.units() if hasattr(model, "units") else model.blocks():
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    for name, parameter in model.named_parameters():  # fully_shard made new ones
        vars(parameter).update(written[name])  # what train/optim.py reads
    # A unit is gathered by all ranks or by none: parts that a batch may not need are run anyway.
    if hasattr(model, "in_step"):
        model.in_step = True
    return True


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that ranks may hold in parts; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This rank's part of it, or all of a tensor that is whole; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all together, of which some may be held in parts; a scalar, still on
    the device."""
    parts = [t for t in tensors if isinstance(t, DTensor)]
    plain = [t for t in tensors if not isinstance(t, DTensor)]
    norms = [full(get_total_norm(kind)) for kind in (parts, plain) if kind]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def like(value: Tensor, held: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor, cut as another is held."""
    if not isinstance(held, DTensor):
        return value
    value = value.to(held.device)
    return distribute_tensor(value, held.device_mesh, held.placements, src_data_rank=None)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All parts on every rank for a while, so that the model can be used in any way and no rank
    waits for another: those that a batch does not need are not run either."""
    parts: list[Any] = [m for m in model.modules() if hasattr(m, "unshard")]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    # shard() made `loss` a forward of its own, around the model's: after the inner one FSDP takes
    # the outer one for no forward, and shards the model again whatever it was told.
    names = ("loss", "in_step") if parts else ()
    held = {name: vars(model).pop(name) for name in names if name in vars(model)}
    if "in_step" in held:
        model.in_step = False  # type: ignore[assignment]
    try:
        yield
    finally:
        vars(model).update(held)
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


@torch.no_grad()
def rejoin(model: nn.Module) -> None:
    """Plain whole parameters again in place of the parts, to be saved or exported."""
    from torch.distributed.fsdp import FSDPModule

    made: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        for name, held in list(module._parameters.items()):
            if isinstance(held, DTensor):
                if held not in made:
                    made[held] = nn.Parameter(held.full_tensor(), held.requires_grad)
                setattr(module, name, made[held])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Its own class again: FSDP's cannot be moved to another device without its parts.
            kind = type(module)
            module.__class__ = next(c for c in kind.__mro__ if not issubclass(c, FSDPModule))
