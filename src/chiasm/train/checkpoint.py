"""Checkpoints that are either whole or absent: safetensors and JSON, COMMIT last, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chiasm.core import aliases
from chiasm.core.errors import CheckpointError
from chiasm.core.protocols import Trainable
from chiasm.train.fsdp import full, like

COMMIT = "COMMIT"
"""The file whose presence says that all others are whole."""


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
    state = dict(_current_names(state, groups))
    for name in {key.split(".", 1)[0] for key in state}:
        if name not in groups:
            raise CheckpointError(
                f"{where}: holds a group '{name}' that this model has not; "
                "use the recipe saved beside it"
            )
        part = {k.split(".", 1)[1]: v for k, v in state.items() if k.split(".", 1)[0] == name}
        load_strictly(groups[name], part, where)


def _current_names(
    state: Mapping[str, Tensor], groups: Mapping[str, nn.Module]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of groups that have had another name since, by the name of now."""
    for key, value in state.items():
        name, _, rest = key.partition(".")
        yield (key if name in groups else f"{aliases.group(name)}.{rest}"), value


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """load_state_dict whose mismatch is one line; each rank takes its part of a sharded module."""
    held = module.state_dict()
    try:
        module.load_state_dict({key: like(value, held.get(key)) for key, value in state.items()})
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1:2]).strip()
        raise CheckpointError(
            f"{where}: does not fit the model: {first}; use the recipe saved beside it"
        ) from None


def copied(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole copies in main memory, for a checkpoint to be written while training goes on. All ranks
    call it together, as each holds parts; those that do not write keep nothing."""
    copies = {}
    for name, value in tensors.items():
        value = full(value.detach())
        if keep:  # of their own even where weights are tied, as safetensors wants them
            copies[name] = value.to("cpu", copy=True).contiguous()
    return copies


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


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: dict) -> None:
    """Write folder/{name}.safetensors and folder/state.json so that a crash at any moment leaves
    either the whole checkpoint or none: temporary folder, fsync, COMMIT, rename. A whole one that
    is there already stays: the same step of the same run is the same checkpoint."""
    if (folder / COMMIT).exists():
        return
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, group in tensors.items():
        save_file(dict(group), temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps(state))
    for file in temporary.iterdir():
        flush(file)
    (temporary / COMMIT).touch()
    flush(temporary)
    shutil.rmtree(folder, ignore_errors=True)  # without COMMIT: no checkpoint
    temporary.rename(folder)
    flush(folder.parent)


def complete(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the newest last."""
    found = [f.parent for f in folder.glob(f"step-*/{COMMIT}") if f.parent.name[5:].isdigit()]
    return sorted(found, key=lambda f: int(f.name[5:]))


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    found = complete(folder)
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Delete all complete checkpoints but the newest `keep` and, of each stage, the one with the
    best score, and what earlier crashes left. Stages may score by other metrics."""
    found = complete(folder)
    best: dict[int, tuple[float, Path]] = {}
    for file in found:  # oldest first: of equals the first stays
        state = read_json(file / "state.json")
        score, stage = state.get("score"), state.get("stage", 0)
        if score is not None and (stage not in best or score > best[stage][0]):
            best[stage] = score, file
    kept = [file for _, file in best.values()]
    for file in found[:-keep]:
        if file not in kept:
            (file / COMMIT).unlink()  # first: half a folder must not look whole
            shutil.rmtree(file)
    for file in folder.glob("step-*"):
        if not (file / COMMIT).exists() or file.suffix == ".tmp":
            shutil.rmtree(file, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """A small file that is replaced in one go: never half of it, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Until a file or a folder's list of names is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
