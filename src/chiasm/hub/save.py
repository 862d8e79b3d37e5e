"""save(model, processor, folder): files that hub.load reads, in chiasm's layout or another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.registry import Registry
from chiasm.data.processor import Processor
from chiasm.hub import mllm, unified
from chiasm.hub.formats import FORMATS, UNIFIED, CheckpointFormat, Target
from chiasm.hub.generic import GenericVLM, save_generic
from chiasm.hub.load import published_base
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified

Layout = Literal["chiasm", "hf"]
RUN_FILES = ("metrics.jsonl", "checkpoints")
"""What a folder holds that a training run wrote: it is never replaced by a saved model."""


def save(
    model: MLLM | Unified | GenericVLM,
    processor: Processor,
    folder: Path,
    layout: CheckpointFormat | Layout = "chiasm",
) -> str:
    """Write a model into an empty or new folder; the name of the layout. The model stays as it is.

    layout: "chiasm", "hf" for the first published layout of transformers that can express the
    model, or one of hub.formats. Raises ConfigError where the layout cannot express the model, or
    chiasm could not build it again.
    """
    if isinstance(model, GenericVLM):
        save_generic(folder, model, processor)  # type: ignore[arg-type]
        return "hf"
    if layout == "chiasm":
        if isinstance(model, MLLM):
            source = model if _adapters_apart(model) else mllm.merged_copy(model)
            base = published_base(model.config.language_model) if _adapters_apart(model) else None
            mllm.save(folder, source, processor, model.config, base)
        else:
            unified.save(folder, model, processor)
        return "chiasm"
    model = mllm.merged_copy(model) if isinstance(model, MLLM) else model
    chosen = fitting(model, processor, "hf") if layout == "hf" else layout
    hindered = chosen.obstacles(model, processor)  # type: ignore[arg-type]
    if hindered:
        raise ConfigError(
            f"save: {chosen.name} cannot express this model: {'; '.join(hindered)}; save it with "
            'layout="chiasm"'
        )
    folder.mkdir(parents=True, exist_ok=True)
    chosen.export(model, processor, folder)  # type: ignore[arg-type]
    return chosen.name


def fitting(model: MLLM | Unified, processor: Processor, target: str) -> CheckpointFormat:
    """The first published layout of a target, or the layout of this tag, that can express a
    model. Raises ConfigError naming what is in the way of the layout that comes nearest."""
    layouts: Registry[Any] = FORMATS if isinstance(model, MLLM) else UNIFIED
    known: list[CheckpointFormat] = [
        layout for layout in layouts.values() if layout.target == target
    ]
    if target not in get_args(Target):
        known = [layouts.find(target)]
    if not known:
        raise ConfigError(f"no {target} layout for a unified model; use --to hf")
    hindered = {layout.name: layout.obstacles(model, processor) for layout in known}
    chosen = next((layout for layout in known if not hindered[layout.name]), None)
    if chosen is None:
        nearest = min(hindered, key=lambda name: len(hindered[name]))
        raise ConfigError(
            f"no published layout can say this model; in the way of {nearest}: "
            f"{'; '.join(hindered[nearest])}"
        )
    return chosen


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which then takes the place of `folder` as a whole.

    Raises CheckpointError where `folder` holds a training run, or files that are no saved model.
    """
    if folder.exists():
        names = {file.name for file in folder.iterdir()} if folder.is_dir() else {"a file"}
        if names & set(RUN_FILES):
            raise CheckpointError(f"{folder}: holds a training run; save to another folder")
        if names and not names & {"model.json", "config.json"}:
            raise CheckpointError(
                f"{folder}: holds {', '.join(sorted(names)[:3])} and no saved model; save to a new "
                "or empty folder"
            )
    folder = Path(os.path.abspath(folder))
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    for place in (temporary, old):
        shutil.rmtree(place, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _adapters_apart(model: MLLM) -> bool:
    return model.config.lora is not None and model.config.lora.apart
