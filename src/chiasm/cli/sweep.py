"""chiasm sweep stability and drift."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, say
from chiasm.core.errors import ConfigError

Out = Positional[Annotated[Path, arg(metavar="OUT")]]


@dataclass(kw_only=True)
class TrialOptions(DeviceOptions):
    layers: int = 3
    """Layers of the models."""
    rows: int = 16
    """Documents of 50 tokens a step."""
    jobs: int = 1
    """Processes, of one thread each."""


@dataclass(kw_only=True)
class Stability(TrialOptions):
    """Learning-rate sensitivity with and without QK-norm and z-loss, on small models from scratch
    (the small-scale-proxy protocol, 2309.14322). Started again it goes on where it was."""

    out: Out = Path("runs/stability")
    """Folder for the trials, stability.json and stability.svg."""
    widths: tuple[int, ...] = (64, 128)
    """Of the models, multiples of 16."""
    seeds: int = 4
    """How often everything is repeated."""
    steps: int = 150
    """Of every run."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    """Peak learning rates."""

    def __call__(self) -> None:
        _check(*self.widths)
        self.use_device()
        from chiasm.recipes.stability.sweep import SweepSettings, sweep

        settings = SweepSettings(
            self.widths, self.layers, self.seeds, self.steps, self.rows, self.rates
        )
        report = sweep(self.out, settings, self.jobs)
        for width, found in report["widths"].items():
            for name, row in found["variants"].items():
                spread = " ".join(f"{s:.3f}" for s in row["sensitivity"])
                say(f"d {width}, {name}: sensitivity by seed {spread}")
            say(
                f"d {width}: qk-norm lowers it in {found['qk_norm_lowers_sensitivity']} of "
                f"{self.seeds} seeds, z-loss in {found['z_loss_lowers_sensitivity']}; z-loss "
                f"lowers the drift of |logZ| in {found['z_loss_lowers_log_z_drift']}"
            )
        say(f"{self.out / 'stability.svg'}, {self.out / 'stability.json'}")


@dataclass(kw_only=True)
class Drift(TrialOptions):
    """Text only, images only and both at one learning rate: whose last block's output grows?
    Started again it goes on where it was."""

    out: Out = Path("runs/drift")
    """Folder for the trials, drift.json and drift.svg."""
    width: int = 64
    """Of the model, a multiple of 16."""
    seeds: int = 3
    """How often everything is repeated."""
    steps: int = 600
    """Of every run."""
    rate: float = 3e-3
    """Peak learning rate."""
    qk_norm: bool = False
    """With QK-norm."""
    z_loss: float = 0.0
    """With this weight of the z-loss."""

    def __call__(self) -> None:
        _check(self.width)
        self.use_device()
        from chiasm.recipes.stability.drift import DriftSettings, drift

        settings = DriftSettings(
            self.width, self.layers, self.seeds, self.steps, self.rows, self.rate, self.qk_norm,
            self.z_loss,
        )  # fmt: skip
        report = drift(self.out, settings, self.jobs)
        for kind, slopes in report["slope_per_1000_steps"].items():
            say(f"{kind}: {' '.join(f'{s:+.4f}' for s in slopes)} per 1,000 steps, by seed")
        say(report["verdict"])
        say(f"{self.out / 'drift.svg'}, {self.out / 'drift.json'}")


def _check(*widths: int) -> None:
    for width in widths:
        if width < 16 or width % 16:
            raise ConfigError(f"width {width}: heads have 16 channels; give a multiple of 16")
