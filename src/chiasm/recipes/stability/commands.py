"""chiasm sweep stability and chiasm sweep drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from chiasm.core.errors import ConfigError


def stability(
    out: Positional[Path] = Path("runs/stability"),
    widths: tuple[int, ...] = (64, 128),
    layers: int = 3,
    seeds: int = 4,
    steps: int = 150,
    rows: int = 16,
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    jobs: int = 1,
    device: str = "",
) -> None:
    """Learning-rate sensitivity with and without QK-norm and z-loss, on small models from scratch
    (the small-scale-proxy protocol, 2309.14322). Started again it goes on where it was.

    Args:
        out: Folder for the trials, stability.json and stability.svg.
        widths: Of the models, multiples of 16.
        layers: Of the models.
        seeds: How often everything is repeated.
        steps: Of every run.
        rows: Documents of 50 tokens a step.
        rates: Peak learning rates.
        jobs: Processes, of one thread each.
        device: auto, cpu, cuda, cuda:N or mps (default: CHIASM_DEVICE, else auto).
    """
    _compute_on(device)
    from chiasm.recipes.stability.sweep import SweepSettings, sweep

    _check(*widths)
    report = sweep(out, SweepSettings(widths, layers, seeds, steps, rows, rates), jobs)
    for width, found in report["widths"].items():
        for name, row in found["variants"].items():
            spread = " ".join(f"{s:.3f}" for s in row["sensitivity"])
            _say(f"d {width}, {name}: sensitivity by seed {spread}")
        _say(
            f"d {width}: qk-norm lowers it in {found['qk_norm_lowers_sensitivity']} of {seeds} "
            f"seeds, z-loss in {found['z_loss_lowers_sensitivity']}; z-loss lowers the drift of "
            f"|logZ| in {found['z_loss_lowers_log_z_drift']}"
        )
    _say(f"{out / 'stability.svg'}, {out / 'stability.json'}")


def drift(
    out: Positional[Path] = Path("runs/drift"),
    width: int = 64,
    layers: int = 3,
    seeds: int = 3,
    steps: int = 600,
    rows: int = 16,
    rate: float = 3e-3,
    qk_norm: bool = False,
    z_loss: float = 0.0,
    jobs: int = 1,
    device: str = "",
) -> None:
    """Text only, images only and both at one learning rate: whose last block's output grows?
    Started again it goes on where it was.

    Args:
        out: Folder for the trials, drift.json and drift.svg.
        width: Of the model, a multiple of 16.
        layers: Of the model.
        seeds: How often everything is repeated.
        steps: Of every run.
        rows: Documents of 50 tokens a step.
        rate: Peak learning rate.
        qk_norm: With QK-norm.
        z_loss: With this weight of the z-loss.
        jobs: Processes, of one thread each.
        device: auto, cpu, cuda, cuda:N or mps (default: CHIASM_DEVICE, else auto).
    """
    _compute_on(device)
    from chiasm.recipes.stability.drift import DriftSettings
    from chiasm.recipes.stability.drift import drift as run

    _check(width)
    settings = DriftSettings(width, layers, seeds, steps, rows, rate, qk_norm, z_loss)
    report = run(out, settings, jobs)
    for kind, slopes in report["slope_per_1000_steps"].items():
        _say(f"{kind}: {' '.join(f'{s:+.4f}' for s in slopes)} per 1,000 steps, by seed")
    _say(report["verdict"])
    _say(f"{out / 'drift.svg'}, {out / 'drift.json'}")


def _check(*widths: int) -> None:
    for width in widths:
        if width < 16 or width % 16:
            raise ConfigError(f"width {width}: heads have 16 channels; give a multiple of 16")


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {"stability": stability, "drift": drift}


def _compute_on(device: str) -> None:
    from chiasm.core.device import compute_on  # it imports torch

    compute_on(device)
