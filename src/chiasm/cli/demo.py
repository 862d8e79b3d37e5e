"""chiasm demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from chiasm.cli.options import DeviceOptions, NewFolder


@dataclass(kw_only=True)
class Demo(DeviceOptions):
    """Train both routes on easy-VQA, evaluate them on the same test split, write a report."""

    out: NewFolder = Path("runs/demo")
    """Folder for the models, summary.json and report.html."""
    fast: bool = False
    """Tiny settings that only show the path works (under 90 seconds; quality not claimed)."""
    seed: int = 0
    """Seed of everything random."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.recipes.demo import run

        report = run(self.out, self.fast, self.seed)
        Console().print(f"\nThe report: [bold]{escape(str(report))}[/bold]")
