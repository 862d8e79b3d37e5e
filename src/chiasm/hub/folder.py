"""The parts every saved model has: model.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chiasm.core.config import from_dict, to_dict
from chiasm.core.errors import CheckpointError
from chiasm.train.checkpoint import load_strictly, read_json, read_tensors


def write(
    folder: Path,
    config: Any,
    module: nn.Module,
    tokenizer: Tokenizer | None = None,
) -> None:
    """model.json, model.safetensors and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = plain_state(module)
    save_file(
        {name: value.detach().contiguous().cpu() for name, value in state.items()},
        folder / "model.safetensors",
    )
    (folder / "model.json").write_text(json.dumps(to_dict(config), indent=2))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state with parametrised weights as what they amount to, under their plain names."""
    state = {k: v for k, v in module.state_dict().items() if "parametrizations." not in k}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            for weight in part.parametrizations:  # type: ignore[union-attr]
                state[f"{name}.{weight}"] = getattr(part, weight)
    return state


def read_config(folder: Path, kind: type) -> Any:
    """The configuration in model.json, checked."""
    return from_dict(kind, read_json(folder / "model.json"), str(folder / "model.json"))


def read_weights(folder: Path, module: nn.Module) -> None:
    """Fill a module from model.safetensors; every key must match."""
    file = folder / "model.safetensors"
    load_strictly(module, read_tensors(file), file)


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, or CheckpointError."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; is {folder} a finished run?")
    return Tokenizer.from_file(str(file))
