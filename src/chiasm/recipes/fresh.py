"""A recipe's model before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from chiasm.data.dataset import read
from chiasm.data.quarantine import Quarantine
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.jobs.job import Context, Job
from chiasm.recipes.recipe import Recipe, find
from chiasm.recipes.run import BUILDERS, reading_of


def fresh(recipe: Recipe) -> tuple[Any, Any]:
    """(model in evaluation mode, its processor) as training would begin with them, by the recipe's
    seed. Parts that the recipe names are read; those that it would train first have random weights.
    Text tokenizers are trained on the recipe's data, so it is read where one is needed. Raises
    ConfigError, CheckpointError and DataError as training does."""
    recipe, quarantine = replace(recipe, questions_per_image=0), Quarantine()
    config = recipe.model
    whole = bool(recipe.init) or (isinstance(config, MLLMConfig) and config.encoder is not None)
    reading = reading_of(recipe, quarantine)
    samples = () if whole else read(recipe.data, "train", quarantine, reading)

    def build(part: Recipe, folder: Path) -> Job:
        context = Context(part, samples, (), folder, quarantine, prepare)
        return BUILDERS[type(part.model)](context)

    def prepare(name: str, folder: Path) -> Path:
        build(replace(find(name), data=recipe.data, seed=recipe.seed), folder).save(folder)
        return folder

    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        job = build(recipe, Path(folder))
    return job.model.eval(), job.processor
