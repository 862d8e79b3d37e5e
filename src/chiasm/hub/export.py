"""A model of ours in a published layout, for the libraries that read it."""

from __future__ import annotations

import shutil
from pathlib import Path

from chiasm.core.device import resolve
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.data.processor import Processor
from chiasm.hub.load import load
from chiasm.hub.mllm import merge_in
from chiasm.hub.save import fitting
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified


def export(run: Path, out: Path, target: str) -> str:
    """Write what `run` holds into the folder `out` in the first layout of the target ("hf", "gguf")
    that can say it, or in the one that the target names (formats.FORMATS or UNIFIED, or
    module:Class of the user's own), read it back with the layout's own library and return a line
    that tells how they agree.

    Raises ConfigError naming what is in the way of the layout that comes nearest, CheckpointError
    for a folder that holds something else, an `out` that is not empty, or a file that differs.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists and is not an empty folder; choose another")
    model, processor = load(run, "cpu")
    if not isinstance(model, MLLM | Unified):
        raise CheckpointError(
            f"{run}: holds a {getattr(model, 'kind', type(model).__name__)}; models of the two "
            "routes are exported"
        )
    assert isinstance(processor, Processor)
    if isinstance(model, MLLM):
        merge_in(model)
    try:
        chosen = fitting(model, processor, target)
    except ConfigError as error:
        raise ConfigError(f"{run}: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    try:
        chosen.export(model, processor, out)
        model.to(resolve())
        return f"{chosen.name}: {chosen.verify(model, processor, out)}"
    except BaseException:  # nothing that is wrong or half written stays
        shutil.rmtree(out, ignore_errors=True)
        raise
