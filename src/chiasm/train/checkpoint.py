"""Checkpoints that are either whole or absent: safetensors and JSON, COMMIT last, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chiasm.core.errors import CheckpointError
from chiasm.core.protocols import Trainable


def state_of(model: Trainable, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameters and buffers of some groups, by `group.name`."""
    groups = model.groups()
    return {
        f"{name}.{key}": value.detach()
        for name in names
        for key, value in groups[name].state_dict().items()
    }


def load_state(model: Trainable, state: dict[str, Tensor], where: Path) -> None:
    """The inverse; CheckpointError when names or shapes differ."""
    groups = model.groups()
    for name in {key.split(".", 1)[0] for key in state}:
        if name not in groups:
            raise CheckpointError(
                f"{where}: holds a group '{name}' that this model has not; "
                "use the recipe saved beside it"
            )
        part = {k.split(".", 1)[1]: v for k, v in state.items() if k.split(".", 1)[0] == name}
        load_strictly(groups[name], part, where)


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """load_state_dict whose mismatch is one line."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1:2]).strip()
        raise CheckpointError(
            f"{where}: does not fit the model: {first}; use the recipe saved beside it"
        ) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or CheckpointError saying what is wrong with it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; was the training finished?") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); restore it or train again") from None


def read_json(path: Path) -> dict:
    """A JSON file, or CheckpointError saying what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is this the folder of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); restore it or train again") from None


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Write folder/{name}.safetensors and folder/state.json so that a crash at any moment leaves
    either the whole checkpoint or none: temporary folder, fsync, COMMIT, rename."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, group in tensors.items():
        save_file(_untied(group), temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps(state))
    for file in temporary.iterdir():
        _flush(file)
    (temporary / "COMMIT").touch()
    _flush(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    _flush(folder.parent)


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    found = [f.parent for f in folder.glob("step-*/COMMIT") if not f.parent.name.endswith(".tmp")]
    return max(found, key=lambda f: int(f.name.split("-")[1]), default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints."""
    found = sorted(folder.glob("step-*/COMMIT"), key=lambda f: int(f.parent.name.split("-")[1]))
    for file in found[:-keep]:
        shutil.rmtree(file.parent)


def _untied(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: whole, and tied ones (head and embedding) copied."""
    seen: set[int] = set()
    separate = {}
    for name, value in group.items():
        value = value.contiguous()
        separate[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return separate


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
