"""load(source): whatever a folder or a repository of the Hugging Face hub holds, by what its
model.json, or a published config.json, says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from chiasm.core import registry
from chiasm.core.config import current, nearest
from chiasm.core.device import resolve, use
from chiasm.core.errors import CheckpointError
from chiasm.hub import autoencoder, contrastive, mllm, unified
from chiasm.hub.formats import FORMATS, UNIFIED, CheckpointFormat
from chiasm.hub.generic import is_generic, load_generic
from chiasm.hub.source import checkpoint_of, local_folder
from chiasm.train.checkpoint import read_json
from chiasm.unified.codec import UnifiedCodec

M = TypeVar("M")

LOADERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "contrastive": contrastive.load,
    "autoencoder": autoencoder.load,
    "mllm_run": lambda path: mllm.load(path, published_base),
    "unified": unified.load,
}


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    allow_custom: Sequence[str] = (),
) -> tuple[Any, Any]:
    """(model in evaluation mode, its processor), on a device as core.device.resolve takes it, which
    becomes the current one.
    path: a folder, or OWNER/NAME of the hub. allow_custom: modules or .py files of your own that
    the run may have parts of, imported here (core/registry.py).
    Raises CheckpointError for a folder that holds none, or one that cannot be read, and ConfigError
    for a device that is not there."""
    place = resolve(device)
    use(place)
    registry.allow_custom(*allow_custom)
    model, processor = _load(local_folder(path))
    move(model, processor, place)
    return model, processor


def move(model: Any, processor: Any, device: torch.device | str) -> None:
    """Move a model to a device, with the network that its processor computes with."""
    model.to(device)
    if isinstance(codec := getattr(processor, "codec", None), UnifiedCodec):
        codec.autoencoder.to(device)


def _load(path: Path) -> tuple[Any, Any]:
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"{path}: no such folder{nearest(path.name, siblings)}; "
            "train one with 'chiasm train' or 'chiasm demo'"
        )
    if not (path / "model.json").exists() and (checkpoint_of(path) / "config.json").exists():
        return _load_published(path)
    kind = current(read_json(path / "model.json").get("kind"))
    if kind not in LOADERS:
        raise CheckpointError(
            f"{path / 'model.json'}: unknown kind '{kind}', expected one of "
            f"{', '.join(LOADERS)}; was it made by a newer chiasm?"
        )
    return LOADERS[kind](path)


def published_base(source: str) -> mllm.Base | None:
    """The published checkpoint of a folder or hub id, None where it holds no layout that adapters
    can be named in."""
    folder = local_folder(source)
    layout = layout_of(folder)
    names = getattr(layout, "names", None)
    return mllm.Base(lambda: layout.load(folder), names) if layout and names else None  # type: ignore[return-value]


def layout_of(path: Path) -> CheckpointFormat | None:
    """The published layout that a folder's config.json says, if it is one of a whole model."""
    file = checkpoint_of(path) / "config.json"
    if (path / "model.json").exists() or not file.exists():
        return None
    config = read_json(file)
    return next((layout for layout in _layouts() if layout.recognises(config)), None)


def _layouts() -> tuple[CheckpointFormat, ...]:
    return (*FORMATS.values(), *UNIFIED.values())


def _load_published(path: Path) -> tuple[Any, Any]:
    layout = layout_of(path)
    if layout is None and is_generic(path):
        return load_generic(path)
    if layout is None:
        file = checkpoint_of(path) / "config.json"
        kind = read_json(file).get("model_type")
        read = ", ".join(one.name for one in _layouts() if one.target == "hf")
        raise CheckpointError(
            f"{file}: a '{kind}', which is neither a type that transformers can ask about images "
            f"nor one of the layouts read here ({read})"
        )
    return layout.load(path)


def load_as(
    path: Path, kind: type[M], field: str, device: str | torch.device | None = None
) -> tuple[M, Any]:
    """load, or CheckpointError if the folder holds another kind of model than `field` wants."""
    model, processor = load(path, device)
    if not isinstance(model, kind):
        raise CheckpointError(
            f"{path}: holds a {type(model).__name__}, but {field} needs the "
            f"folder of a {kind.__name__}"
        )
    return model, processor
