"""Low-rank adapters through peft: injected in place, merged exactly."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from chiasm.core.errors import MissingExtraError
from chiasm.mllm.config import LoRAConfig


def add_adapters(model: nn.Module, config: LoRAConfig) -> None:
    """Put adapters on the matrices whose names end in config.targets; B starts at zero, so the
    function is unchanged."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "Training with low-rank adapters")
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides by it: any number will do
        target_modules=list(config.targets),
    )
    peft.inject_adapter_in_model(settings, model)


def adapters_of(model: nn.Module) -> list[Any]:
    """The adapted layers, in module order."""
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]


def merge_adapters(model: nn.Module) -> None:
    """Fold every adapter into its matrix (W + alpha/r · B A) and leave plain layers behind."""
    adapted = set(adapters_of(model))
    for name, layer in list[tuple[str, Any]](model.named_modules()):
        if layer in adapted:
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.base_layer)
