"""Freezing by group and the optimiser of a stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Trainable
from chiasm.nn.precision import working_dtype
from chiasm.train.muon import Muon
from chiasm.train.stage import Stage


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
        """The inverse, over optimisers built the same way."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key, value in tensors.items():
            i, number, name = key.split(".", 2)
            states[int(i)].setdefault(int(number), {})[name] = value
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )


def make_optimizer(model: Trainable, stage: Stage) -> Optimizers:
    """The stage's optimiser, a parameter group for each model group and kind of parameter.

    Each parameter group carries `name` and `peak`; the loop sets `lr` from the schedule. AdamW
    decays matrices and leaves vectors alone.
    """
    # By layer, not by shape: a norm with a vector a head is two-dimensional too.
    layers = (m for block in model.blocks() for m in block.modules())
    hidden = {id(m.weight) for m in layers if isinstance(m, nn.Linear | nn.Conv2d)}
    hidden = hidden if stage.optimizer == "muon" else set()
    adamw, muon = [], []
    for name, rate in stage.lr.items():
        all_own = [p for p in model.groups()[name].parameters() if p.requires_grad]
        for wider in sorted({_widening(p) for p in all_own}):
            own = [p for p in all_own if _widening(p) == wider]
            rest = [p for p in own if id(p) not in hidden]
            matrices = [p for p in rest if p.dim() >= 2]
            adamw.append(_group(name, rate / wider, matrices, stage.weight_decay))
            adamw.append(_group(name, rate, [p for p in rest if p.dim() < 2], 0.0))
            # Muon's update has a spectral norm that grows as the root of the width, where μP wants
            # it constant: AdamW's grows as the width itself.
            matrices = [p for p in own if id(p) in hidden]
            scale = stage.muon_scale / wider**0.5
            muon.append(_group(name, rate * scale, matrices, stage.weight_decay))
    adamw, muon = ([g for g in groups if g["params"]] for groups in (adamw, muon))
    parts: list[torch.optim.Optimizer] = []
    if adamw:
        parts.append(torch.optim.AdamW(adamw, betas=stage.betas, eps=stage.eps, fused=True))
    if muon:
        device = muon[0]["params"][0].device
        dtype = working_dtype(stage.autocast, device)
        parts.append(Muon(muon, dtype=dtype, iterations=stage.muon_iterations))
    if not parts:
        raise ConfigError(
            f"stage '{stage.name}' trains nothing: give at least one group a rate in lr"
        )
    return Optimizers(*parts)


def _widening(parameter: nn.Parameter) -> float:
    """How many times wider a hidden matrix is than where its rate was found (μP, 2203.03466,
    table 8: Adam's rate for it falls as 1/width)."""
    return getattr(parameter, "widening", 1.0)


def _group(name: str, rate: float, parameters: list, decay: float) -> dict:
    return {"params": parameters, "lr": rate, "peak": rate, "name": name, "weight_decay": decay}
