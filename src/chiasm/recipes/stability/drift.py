"""Do modalities that share weights push each other to grow? Text only, images only and both, at
one learning rate: Chameleon's late divergence (2405.09818, section 2.3) came with a last-layer
output that grew where both were trained, and did not without image generation.

Small models do not diverge this way. What they can show is whether the output of the last block
grows faster in the mixture than in either alone; the answer is written down whatever it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from chiasm.core.progress import Bar, Show
from chiasm.recipes.stability.chart import Line, line_chart
from chiasm.recipes.stability.toy import Kind
from chiasm.recipes.stability.trial import Outcome, Trial
from chiasm.recipes.stability.workers import claim, run_all
from chiasm.train.checkpoint import write_whole

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class DriftSettings:
    """As Trial; without stabilisers by default, as they are what hides it."""

    width: int = 64
    layers: int = 3
    seeds: int = 3
    steps: int = 600
    rows: int = 16
    rate: float = 3e-3
    qk_norm: bool = False
    z_loss: float = 0.0


def drift(folder: Path, settings: DriftSettings, jobs: int = 1, show: Show = Bar) -> dict:
    """Train all of it, write folder/drift.json and .svg; what the JSON says."""
    claim(folder, {"sweep": "drift", **asdict(settings)})
    shape = (settings.width, settings.layers, settings.qk_norm, settings.z_loss, settings.rate)
    trials = {
        (kind, seed): Trial(kind, *shape, seed, settings.steps, settings.rows)
        for seed in range(settings.seeds)
        for kind in KINDS
    }
    outcomes = run_all(list(trials.values()), folder, jobs, show)
    found = {key: outcomes[trial] for key, trial in trials.items()}
    report = summary(found, settings)
    write_whole(folder / "drift.json", json.dumps(report, indent=2))
    write_whole(folder / "drift.svg", image(found, settings))
    return report


def summary(found: Mapping[tuple, Outcome], settings: DriftSettings) -> dict:
    """Slopes by kind and seed, and in how many seeds the mixture's is the steepest."""
    slopes = {
        kind: [slope(found[kind, seed].output_rms) for seed in range(settings.seeds)]
        for kind in KINDS
    }
    steepest = sum(
        1
        for mixed, *alone in zip(slopes["mixed"], slopes["text"], slopes["image"], strict=True)
        if mixed > max(alone)
    )
    return {
        "settings": asdict(settings),
        "slope_per_1000_steps": slopes,
        "loss": {k: [found[k, s].loss for s in range(settings.seeds)] for k in KINDS},
        "mixed_is_steepest": steepest,
        "seeds": settings.seeds,
        "verdict": f"the last block's output grows fastest in the mixture in {steepest} of "
        f"{settings.seeds} seeds",
    }


def slope(series: Sequence[tuple[int, float]]) -> float:
    """Least-squares slope of a quantity per 1,000 steps over the second half of a run, when the
    warm-up is over; 0 for fewer than two points."""
    late = series[len(series) // 2 :]
    if len(late) < 2:
        return 0.0
    x, y = ([float(pair[i]) for pair in late] for i in (0, 1))
    middle, level = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle) ** 2 for a in x)
    return 1000 * sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / spread


def image(found: Mapping[tuple, Outcome], settings: DriftSettings) -> str:
    """Size of the last block's output over the steps, mean over the seeds that went so far."""
    lines = []
    for kind in KINDS:
        values: dict[int, list[float]] = {}
        for seed in range(settings.seeds):
            for step, value in found[kind, seed].output_rms:
                values.setdefault(step, []).append(value)
        lines.append(Line(kind, [(s, sum(v) / len(v)) for s, v in sorted(values.items())]))
    return line_chart(lines, "step", "size of the last block's output (rms)")
