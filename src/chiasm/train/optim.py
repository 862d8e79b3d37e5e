"""Freezing by group and the optimiser of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Trainable
from chiasm.nn.precision import working_dtype
from chiasm.train.fsdp import like
from chiasm.train.muon import Muon
from chiasm.train.stable_adamw import StableAdamW
from chiasm.train.stage import GroupSettings, Optimizer, Stage


def set_trained(model: Trainable, stage: Stage) -> None:
    """Freeze every group the stage gives no learning rate. ConfigError for an unknown group."""
    groups = model.groups()
    for name in stage.lr:
        if name not in groups:
            raise ConfigError(
                f"stage '{stage.name}': the model has no group '{name}' "
                f"(it has {', '.join(groups)}){nearest(name, groups)}"
            )
    for name, module in groups.items():
        for parameter in module.parameters():
            parameter.requires_grad_(name in stage.lr and trainable(parameter))


def trainable(parameter: nn.Parameter) -> bool:
    """Parameters that an adapter holds fixed carry `frozen` and stay so in every stage."""
    return parameter.is_floating_point() and not getattr(parameter, "frozen", False)


class Optimizers:
    """One or two optimisers stepped as one; `groups` are all their parameter groups."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state flattened for safetensors: optimiser / parameter number / quantity."""
        return {
            f"{i}.{number}.{name}": value
            for i, part in enumerate(self.parts)
            for number, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse, over optimisers built the same way; each rank takes its part of what its
        parameters are held in parts of."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        parameters = [[p for g in part.param_groups for p in g["params"]] for part in self.parts]
        for key, value in tensors.items():
            i, number, name = key.split(".", 2)
            if value.dim():
                value = like(value, parameters[int(i)][int(number)])
            states[int(i)].setdefault(int(number), {})[name] = value
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )


@dataclass(frozen=True)
class _Kind:
    """One optimiser: what makes it, and which parameters it is for."""

    make: Callable[[list[dict]], torch.optim.Optimizer]
    groups: list[dict] = field(default_factory=list)


def make_optimizer(model: Trainable, stage: Stage) -> Optimizers:
    """The stage's optimiser, a parameter group for each model group and kind of parameter.

    Each parameter group carries `name` and `peak`; the loop sets `lr` from the schedule. Matrices
    are decayed and vectors left alone. ConfigError for settings of a group the stage does not
    train.
    """
    for name in stage.groups:
        if name not in stage.lr:
            raise ConfigError(
                f"stage '{stage.name}': groups.{name} has settings but no rate in lr"
                f"{nearest(name, stage.lr)}"
            )
    # By layer, not by shape: a norm with a vector a head is two-dimensional too.
    layers = (m for block in model.blocks() for m in block.modules())
    hidden = {id(m.weight) for m in layers if isinstance(m, nn.Linear | nn.Conv2d)}
    kinds = {
        "adamw": _Kind(partial(torch.optim.AdamW, fused=True)),
        "stable_adamw": _Kind(StableAdamW),
        "muon": _Kind(partial(_muon, stage)),
    }
    for name, rate in stage.lr.items():
        own = [p for p in model.groups()[name].parameters() if p.requires_grad]
        for kind, group in _groups(stage, name, rate, own, hidden):
            if group["params"]:
                kinds[kind].groups.append(group)
    parts = [kind.make(kind.groups) for kind in kinds.values() if kind.groups]
    if not parts:
        raise ConfigError(
            f"stage '{stage.name}' trains nothing: give at least one group a rate in lr"
        )
    return Optimizers(*parts)


def _groups(
    stage: Stage, name: str, rate: float, parameters: list[nn.Parameter], hidden: set[int]
) -> Iterator[tuple[Optimizer, dict]]:
    """(which optimiser, parameter group) for what a model group trains."""
    given = stage.groups.get(name, GroupSettings())
    chosen = given.optimizer or stage.optimizer
    decay = stage.weight_decay if given.weight_decay is None else given.weight_decay
    adam = {"betas": given.betas or stage.betas, "eps": given.eps or stage.eps}

    def group(chosen: list[nn.Parameter], rate: float, decay: float, **more: object) -> dict:
        common = {"params": chosen, "lr": rate, "peak": rate, "name": name}
        return {**common, "weight_decay": decay, **more}

    for wider in sorted({_widening(p) for p in parameters}):
        own = [p for p in parameters if _widening(p) == wider]
        rest, kind = own, chosen
        if chosen == "muon":
            rest, kind = [p for p in own if id(p) not in hidden], "adamw"
            # Muon's update has a spectral norm that grows as the root of the width, where μP wants
            # it constant: AdamW's grows as the width itself.
            peak = rate * stage.muon_scale / wider**0.5
            yield "muon", group([p for p in own if id(p) in hidden], peak, decay)
        yield kind, group([p for p in rest if p.dim() >= 2], rate / wider, decay, **adam)
        yield kind, group([p for p in rest if p.dim() < 2], rate, 0.0, **adam)


def _widening(parameter: nn.Parameter) -> float:
    """How many times wider a hidden matrix is than where its rate was found (μP, 2203.03466,
    table 8: Adam's rate for it falls as 1/width)."""
    return getattr(parameter, "widening", 1.0)


def _muon(stage: Stage, groups: list[dict]) -> Muon:
    dtype = working_dtype(stage.autocast, groups[0]["params"][0].device)
    return Muon(groups, dtype=dtype, iterations=stage.muon_iterations)
