"""The small-scale-proxy protocol (Wortsman et al., 2309.14322): how much of the range of learning
rates a model can be trained with, with and without each stabiliser."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chiasm.core.progress import Bar, Show
from chiasm.recipes.stability.chart import Line, line_chart
from chiasm.recipes.stability.trial import Outcome, Trial
from chiasm.recipes.stability.workers import claim, run_all
from chiasm.train.checkpoint import write_whole

VARIANTS = {"plain": (False, 0.0), "qk-norm": (True, 0.0), "z-loss": (False, 1e-4)}
"""name -> (qk_norm, z_loss): each stabiliser alone against none."""


@dataclass(frozen=True)
class SweepSettings:
    """rates: the paper's range. The rest as Trial."""

    widths: tuple[int, ...] = (64, 128)
    layers: int = 3
    seeds: int = 4
    steps: int = 150
    rows: int = 16
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def sweep(folder: Path, settings: SweepSettings, jobs: int = 1, show: Show = Bar) -> dict:
    """Train all of it, write folder/stability.json and .svg; what the JSON says."""
    claim(folder, {"sweep": "stability", **json.loads(json.dumps(asdict(settings)))})
    trials = {
        (width, name, seed, rate): Trial(
            "mixed", width, settings.layers, qk, z, rate, seed, settings.steps, settings.rows
        )
        for seed in range(settings.seeds)  # a whole seed is of use before the next begins
        for width in settings.widths
        for name, (qk, z) in VARIANTS.items()
        for rate in settings.rates
    }
    outcomes = run_all(list(trials.values()), folder, jobs, show)
    found = {key: outcomes[trial] for key, trial in trials.items()}
    report = summary(found, settings)
    write_whole(folder / "stability.json", json.dumps(report, indent=2))
    write_whole(folder / "stability.svg", image(report, settings))
    return report


def sensitivity(losses: Sequence[float | None], starts: Sequence[float]) -> float:
    """Learning-rate sensitivity (section 2.2): the mean over rates of min(loss, loss at the start)
    less the smallest; lost runs count as never having begun."""
    capped = [s if loss is None else min(loss, s) for loss, s in zip(losses, starts, strict=True)]
    return sum(capped) / len(capped) - min(capped)


def summary(found: Mapping[tuple, Outcome], settings: SweepSettings) -> dict:
    """Per width: by variant and seed the losses, sensitivity and drift of logZ, and in how many
    seeds each stabiliser lowers what it is for. The drift is how far |logZ| moved, at the rate that
    is best without stabilisers."""
    report: dict = {"settings": asdict(settings), "widths": {}}
    for width in settings.widths:
        of = {
            name: [
                [found[width, name, seed, rate] for rate in settings.rates]
                for seed in range(settings.seeds)
            ]
            for name in VARIANTS
        }
        best = [_best(row) for row in of["plain"]]
        rows = {
            name: {
                "loss": [[o.loss for o in row] for row in seeds],
                "start": seeds[0][0].start,
                "sensitivity": [
                    sensitivity([o.loss for o in row], [o.start for o in row]) for row in seeds
                ],
                "log_z_drift": [_drift(row[best[seed]]) for seed, row in enumerate(seeds)],
                "largest_logit": [[_top(o.largest_logit) for o in row] for row in seeds],
            }
            for name, seeds in of.items()
        }
        report["widths"][str(width)] = {
            "variants": rows,
            "qk_norm_lowers_sensitivity": _wins(rows, "qk-norm", "sensitivity"),
            "z_loss_lowers_sensitivity": _wins(rows, "z-loss", "sensitivity"),
            "z_loss_lowers_log_z_drift": _wins(rows, "z-loss", "log_z_drift"),
            "seeds": settings.seeds,
        }
    return report


def _best(row: Sequence[Outcome]) -> int:
    losses = [math.inf if one.loss is None else one.loss for one in row]
    return losses.index(min(losses))


def _drift(outcome: Outcome) -> float | None:
    return None if outcome.log_z is None else abs(outcome.log_z - outcome.log_z_start)


def _top(series: Sequence[tuple[int, float]]) -> float | None:
    return max((value for _, value in series), default=None)


def _wins(rows: Mapping[str, dict], name: str, quantity: str) -> int:
    """In how many seeds the variant is lower than none; a lost run is never."""
    pairs = zip(rows[name][quantity], rows["plain"][quantity], strict=True)
    return sum(1 for own, plain in pairs if own is not None and (plain is None or own < plain))


def image(report: Mapping, settings: SweepSettings) -> str:
    """Final loss over learning rate, a line a variant and width, mean over seeds."""
    lines = []
    for width, found in report["widths"].items():
        for name, row in found["variants"].items():
            capped = [
                [min(row["start"], row["start"] if x is None else x) for x in seed]
                for seed in row["loss"]
            ]
            means = [sum(column) / len(column) for column in zip(*capped, strict=True)]
            spread = sum(row["sensitivity"]) / len(row["sensitivity"])
            label = f"{name}, d {width}: sensitivity {spread:.3f}"
            lines.append(Line(label, list(zip(settings.rates, means, strict=True))))
    return line_chart(lines, "learning rate", "loss at the end (nats a token)", log_x=True)
