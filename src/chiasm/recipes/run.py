"""Carry a recipe out: read the data, build the job, train, save what can be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from chiasm.core import aliases
from chiasm.core.config import to_dict
from chiasm.core.device import resolve
from chiasm.core.errors import CheckpointError
from chiasm.core.progress import Bar, Show
from chiasm.data.dataset import read, read_held_out
from chiasm.data.formats.reading import Reading
from chiasm.data.formats.rows import EMPTY
from chiasm.data.quarantine import Quarantine
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.image_check import check_image_use, check_resolution
from chiasm.recipes.jobs import encoder, mllm, tokenizer, unified
from chiasm.recipes.jobs.job import Context, Job
from chiasm.recipes.recipe import Augment, Recipe, batch_unit, find, from_saved
from chiasm.train.callbacks import Callback
from chiasm.train.checkpoint import read_json, write_whole
from chiasm.train.evaluation import check_stages
from chiasm.train.log import COST, Ledger
from chiasm.train.loggers import open_sinks
from chiasm.train.loop import train
from chiasm.train.parallel import World, joined
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig

DROPPED = "(rounds beyond max_length)"
Resume = Literal["no", "yes", "auto"]

BUILDERS = {
    ContrastiveConfig: encoder.build,
    AutoencoderConfig: tokenizer.build,
    MLLMConfig: mllm.build,
    UnifiedConfig: unified.build,
}


def run(
    recipe: Recipe,
    folder: Path,
    resume: Resume = "no",
    show: Show = Bar,
    callbacks: Sequence[Callback] = (),
    check: bool = True,
) -> Ledger:
    """Train a recipe into a folder that hub.load reads: recipe.json, metrics.jsonl, cost.json,
    quarantine.jsonl if anything was bad, checkpoints/ and the model.

    A folder that holds a run already is refused unless it is resumed: "yes" continues it, with the
    recipe saved in it; "auto" starts, continues or, where it is finished, does nothing, as a job
    that may be started again wants it. Under torchrun every rank calls this with the same folder.
    It is trained on this process's device (core/device.py). callbacks: called by the main rank, for
    this recipe alone and not for parts that it trains first. check: say before training what
    images lose at the size the model sees, and after it whether the model uses them
    (image_use.json), where one process trains.
    """
    device = resolve()
    with joined(device) as world:
        return _run(recipe, Path(folder), resume, show, world, device, callbacks, check)


def _run(
    recipe: Recipe,
    folder: Path,
    resume: Resume,
    show: Show,
    world: World,
    device: torch.device,
    callbacks: Sequence[Callback],
    check: bool,
) -> Ledger:
    saved, finished = folder / "recipe.json", (folder / "model.json").exists()
    if finished and resume == "auto":
        return Ledger.from_dict(read_json(aliases.file_of(folder, COST)))
    if finished and resume == "no":
        raise CheckpointError(f"{folder}: holds a finished run; choose another --out or delete it")
    if resume == "yes" and not saved.exists():
        raise CheckpointError(f"{folder}: holds no run; --resume auto would start one")
    if resume != "no" and saved.exists():
        recipe = from_saved(read_json(saved))
    for stage in recipe.stages:
        stage.batch_size(batch_unit(recipe.model, stage))
    check_stages(recipe.stages, True)  # before a refused recipe is written
    world.wait()  # all have looked
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(saved, json.dumps(to_dict(recipe), indent=2))
    quarantine = Quarantine(folder / "quarantine.jsonl")
    context = Context(
        recipe,
        read(recipe.data, "train", quarantine, reading_of(recipe, quarantine)),
        read_held_out(recipe.data, reading_of(recipe, Quarantine())),
        folder,
        quarantine,
        lambda name, path: _prepare(recipe, name, path, show, check),
    )
    stages = recipe.stages
    if recipe.augment != Augment():  # moved images are new ones every time: nothing to remember
        stages = tuple(replace(stage, feature_cache=0.0) for stage in stages)
    reason = f"{recipe.data} has no held-out half"
    check_stages(stages, context.test or None, reason)  # before parts of the model are trained
    torch.manual_seed(recipe.seed)
    job = BUILDERS[type(recipe.model)](context)
    check_stages(stages, job.evaluate, f"no held-out sample of {recipe.data} can be evaluated")
    if job.check:
        job.check(stages, world)
    console = Console(stderr=True)
    if job.note and world.is_main:
        console.print(job.note, soft_wrap=True, highlight=False, markup=False)
    looked = check and world.size == 1
    seen = check_resolution(job, context.train, console) if looked else None
    ledger = train(
        job.model,
        stages,
        job.stream_of,
        folder,
        seed=recipe.seed,
        resume=resume != "no",
        evaluate=job.evaluate,
        keep=recipe.keep_checkpoints,
        show=show,
        ranks=recipe.ranks,
        sinks=lambda step: open_sinks(recipe.loggers, folder, to_dict(recipe), step),
        device=device,
        callbacks=callbacks,
        evaluate_first=bool(recipe.init),
    )
    use = None
    if looked:
        try:
            use = check_image_use(job, stages, seen, len(context.train), console)
        except Exception as error:  # what was trained is not saved yet
            console.print(f"whether the image is used could not be checked: {error}", markup=False)
    job.to("cpu")
    if world.is_main:
        _save(job, folder)
        if use is not None:
            write_whole(folder / "image_use.json", json.dumps(use, indent=2))
    world.wait()
    shortened = getattr(job.processor, "shortened", {})
    if shortened:
        quarantine.unused[DROPPED] += sum(shortened.values())
        Console(stderr=True).print(
            f"{len(shortened)} conversations are longer than {job.processor.max_length} tokens: "
            f"{sum(shortened.values())} of their last rounds were not learnt; raise "
            "model.max_length or split them"
        )
    if quarantine.unused[EMPTY]:
        Console(stderr=True).print(f"{quarantine.unused[EMPTY]} empty replies were learnt")
    quarantine.write_unused()
    if len(quarantine):
        Console(stderr=True).print(
            f"{len(quarantine)} samples could not be used: {folder / 'quarantine.jsonl'}"
        )
    return ledger


def _save(job: Job, folder: Path) -> None:
    """The model's files, moved into place when all are written, model.json last: a run that dies
    here is not taken for a finished one."""
    temporary = folder / "saving.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    job.save(temporary)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == "model.json"):
        place = folder / file.name
        if place.is_dir():
            shutil.rmtree(place)
        file.rename(place)
    temporary.rmdir()


def reading_of(recipe: Recipe, quarantine: Quarantine) -> Reading:
    images = Path(recipe.images).expanduser() if recipe.images else None
    return Reading(quarantine.record, images, strict=recipe.strict)


def _prepare(recipe: Recipe, name: str, folder: Path, show: Show, check: bool) -> Path:
    """A part the recipe needs and was not given: trained on the same data, once."""
    if not (folder / "model.json").exists():
        part = find(name)
        run(
            replace(
                part,
                data=recipe.data,
                seed=recipe.seed,
                images=recipe.images,
                strict=recipe.strict,
            ),
            folder,
            resume="auto",
            show=show,
            check=check,
        )
    return folder
