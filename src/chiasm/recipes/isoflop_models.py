"""The sides of a duel: what each trains, and how it is made to cost a given number of FLOPs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from chiasm.core.errors import ConfigError
from chiasm.core.progress import Show
from chiasm.core.sample import Sample
from chiasm.hub.load import load_as
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.recipes.jobs.job import corpus
from chiasm.recipes.random_lm import LanguageShape, write_language
from chiasm.recipes.recipe import Recipe, find
from chiasm.recipes.run import run
from chiasm.train.log import Entry, Ledger
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.config import ContrastiveConfig


@dataclass(frozen=True)
class Arm:
    """A part (encoder or image tokenizer) and the model that is built on it, both trained within
    the budget. scratch: the language model starts from random weights of this shape."""

    name: str
    title: str
    part: Recipe
    main: Recipe
    scratch: LanguageShape | None = None

    @property
    def part_name(self) -> str:
        return "encoder" if isinstance(self.part.model, ContrastiveConfig) else "tokenizer"


def known_arms() -> dict[str, Arm]:
    """The arms of `chiasm isoflop` by name."""
    encoder, tokenizer = find("encoder"), find("tokenizer")
    arms = (
        Arm(
            "mllm-scratch",
            "MLLM, language model from scratch",
            encoder,
            scratch_recipe(),
            LanguageShape(),
        ),
        Arm("unified", "Unified, from scratch", tokenizer, find("unified_nano")),
        Arm("mllm", "MLLM, pretrained language model", encoder, find("mllm_smol")),
    )
    return {arm.name: arm for arm in arms}


def scratch_recipe() -> Recipe:
    """Route A with nothing borrowed: all parts learn from captions, then from matching captions,
    then from questions, as unified_nano's do."""
    rates = {"vision": 1e-3, "projector": 2e-3, "language_model": 2e-3}

    def stage(name: str, steps: int, data: str, **more: Any) -> Stage:
        settings = {"schedule": "constant", "warmup_ratio": 0.0, **more}
        return Stage(
            name,
            steps,
            rates,
            data,
            batch_tokens=2048,
            optimizer="muon",
            muon_iterations=3,
            **settings,
        )

    stages = (
        stage("perceive", 90, "caption", warmup_ratio=0.05),
        stage("itm", 110, "itm"),
        stage("itm_hard", 40, "itm_hard"),
        stage("chat", 130, "chat+chat+chat+itm_hard"),
        stage("settle", 300, "chat"),
        stage("cool", 290, "chat", schedule="linear"),
    )
    return Recipe(
        MLLMConfig(projector=MLPConfig(merge=2), lora=None), stages, questions_per_image=9
    )


@dataclass(frozen=True)
class Rate:
    """What a step of a stage costs, measured: FLOPs, seconds, images."""

    flops: float
    seconds: float
    images: float


Rates = tuple[tuple[Rate, ...], tuple[Rate, ...]]
"""Of the stages of an arm's part and of its model."""


def measure(arm: Arm, data: str, train: Sequence[Sample], folder: Path, show: Show) -> Rates:
    """Train a few steps of every stage; FLOPs are counted from shapes, so they are what the same
    stages will cost."""
    few = ((PROBED,) * len(arm.part.stages), (PROBED,) * len(arm.main.stages))
    part = train_part(arm, data, folder, 0, few[0], show)
    main = train_main(arm, data, train, folder, 0, few[1], show)
    shutil.rmtree(folder / "model" / "language", ignore_errors=True)  # half a gigabyte, unused
    return _rates(part.stages), _rates(main.stages)


PROBED = 4
"""Steps of each stage that say what one costs."""


def _rates(entries: Sequence[Entry]) -> tuple[Rate, ...]:
    return tuple(Rate(e.flops / e.steps, e.seconds / e.steps, e.images / e.steps) for e in entries)


def fit_steps(own: Sequence[int], costs: Sequence[float], budget: float) -> tuple[int, ...]:
    """Steps of stages that cost `budget` together, in the proportions of `own` as nearly as whole
    steps allow; what is left over goes to the cheapest stage. Raises ConfigError where one step of
    each costs more already."""
    if math.fsum(costs) > budget:
        raise ConfigError(
            f"one step of each stage costs {math.fsum(costs):.3g} FLOPs, more than the "
            f"{budget:.3g} there are; raise --budget"
        )
    scale = budget / math.fsum(n * c for n, c in zip(own, costs, strict=True))
    steps = [max(1, math.floor(scale * n)) for n in own]
    # Stages raised to their one step may have overdrawn: the longest give back.
    while (rest := budget - _cost(steps, costs)) < 0:
        i = max(range(len(steps)), key=lambda i: steps[i] * costs[i] if steps[i] > 1 else -1)
        steps[i] -= 1
    for i in sorted(range(len(own)), key=lambda i: math.floor(scale * own[i]) - scale * own[i]):
        if costs[i] <= rest:
            steps[i] += 1
            rest -= costs[i]
    cheapest = min(range(len(costs)), key=lambda i: costs[i])
    steps[cheapest] += round(rest / costs[cheapest])
    return tuple(steps)


def _cost(steps: Sequence[int], costs: Sequence[float]) -> float:
    return math.fsum(n * c for n, c in zip(steps, costs, strict=True))


def train_part(
    arm: Arm, data: str, folder: Path, seed: int, steps: Sequence[int], show: Show
) -> Ledger:
    """The encoder or tokenizer; where it is finished, its ledger."""
    recipe = replace(_with_steps(arm.part, steps), data=data, seed=seed)
    return run(recipe, folder / arm.part_name, "auto", show)


def train_main(
    arm: Arm,
    data: str,
    train: Sequence[Sample],
    folder: Path,
    seed: int,
    steps: Sequence[int],
    show: Show,
) -> Ledger:
    """The model on its part; where it is finished, its ledger."""
    given = {arm.part_name: str(folder / arm.part_name)}
    if arm.scratch is not None:
        language = folder / "language"
        if not (folder / "model" / "recipe.json").exists():
            write_language(language, corpus(train), arm.scratch, seed)
        given["language_model"] = str(language)
    model = replace(arm.main.model, **given)  # type: ignore[arg-type]
    recipe = replace(_with_steps(arm.main, steps), model=model, data=data, seed=seed)
    return run(recipe, folder / "model", "auto", show)


def _with_steps(recipe: Recipe, steps: Sequence[int]) -> Recipe:
    stages = zip(recipe.stages, steps, strict=True)
    return replace(recipe, stages=tuple(replace(stage, steps=n) for stage, n in stages))


def encoding_flops(arm: Arm, folder: Path, images: float, distinct_images: int) -> float:
    """What reading images costs besides the ledger: a tokenizer turns each into codes the first
    time it is seen (of an encoder every pass is in the ledger). images: images of the stage that
    shows most; all stages show the same ones in the same order."""
    if arm.part_name != "tokenizer":
        return 0.0
    return _flops_per_image(folder / "tokenizer") * min(images, distinct_images)


@lru_cache(maxsize=64)
def _flops_per_image(folder: Path) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    autoencoder, _ = load_as(folder, Autoencoder, "the tokenizer")
    size = autoencoder.config.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        autoencoder.encode(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())
