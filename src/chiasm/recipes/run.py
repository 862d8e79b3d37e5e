"""Carry a recipe out: read the data, build the job, train, save what can be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from chiasm.core.config import to_dict
from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Sample
from chiasm.data.load import load_samples
from chiasm.data.quarantine import Quarantine
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.jobs import encoder, mllm, tokenizer, unified
from chiasm.recipes.jobs.job import Context
from chiasm.recipes.recipe import Recipe, find, from_saved
from chiasm.train.checkpoint import read_json
from chiasm.train.log import Ledger
from chiasm.train.loop import train
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig

BUILDERS = {
    ContrastiveConfig: encoder.build,
    AutoencoderConfig: tokenizer.build,
    MLLMConfig: mllm.build,
    UnifiedConfig: unified.build,
}


def run(recipe: Recipe, folder: Path, resume: bool = False, show: Show = Bar) -> Ledger:
    """Train a recipe into a folder that hub.load reads: recipe.json, metrics.jsonl, ledger.json,
    quarantine.jsonl if anything was bad, checkpoints/ and the model.

    A folder that holds a run already is refused unless it is resumed.
    """
    folder = Path(folder)
    saved = folder / "recipe.json"
    if resume and saved.exists():
        recipe = from_saved(read_json(saved))
    elif (folder / "model.json").exists():
        raise CheckpointError(f"{folder}: holds a finished run; choose another --out or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(to_dict(recipe), indent=2))
    quarantine = Quarantine(folder / "quarantine.jsonl")
    context = Context(
        recipe,
        read(recipe.data, "train", quarantine),
        _test(recipe.data),
        folder,
        quarantine,
        lambda name, path: _prepare(recipe, name, path, show),
    )
    torch.manual_seed(recipe.seed)
    job = BUILDERS[type(recipe.model)](context)
    ledger = train(
        job.model,
        recipe.stages,
        job.stream_of,
        folder,
        seed=recipe.seed,
        resume=resume,
        evaluate=job.evaluate,
        keep=recipe.keep,
        show=show,
    )
    job.save(folder)
    if len(quarantine):
        Console(stderr=True).print(
            f"{len(quarantine)} samples could not be used: {folder / 'quarantine.jsonl'}"
        )
    return ledger


def read(data: str, split: str, quarantine: Quarantine) -> list[Sample]:
    """The samples of a split; bad lines go to the quarantine, the format is confirmed."""
    console = Console(stderr=True, soft_wrap=True)
    return load_samples(
        data,
        split,  # type: ignore[arg-type]
        on_error=quarantine.record,
        say=lambda line: console.print(line, markup=False, highlight=False),
    )


def _test(data: str) -> list[Sample]:
    try:
        return read(data, "test", Quarantine())
    except DataError:
        return []


def _prepare(recipe: Recipe, name: str, folder: Path, show: Show) -> Path:
    """A part the recipe needs and was not given: trained on the same data, once."""
    if not (folder / "model.json").exists():
        part = find(name)
        run(
            replace(part, data=recipe.data, seed=recipe.seed),
            folder,
            resume=(folder / "recipe.json").exists(),
            show=show,
        )
    return folder
