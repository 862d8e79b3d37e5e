"""chiasm compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, TaskOptions


@dataclass(kw_only=True)
class Compare(TaskOptions, DeviceOptions):
    """Models on the same questions: paired tests, kinds of questions, cost, where they disagree."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]]
    """Folders of trained models, or files of predictions that eval left. What a folder was asked
    before is not asked again."""
    out: Annotated[Path, arg(metavar="FILE.html", aliases=["-o"])] = Path("comparison.html")
    """The report, one HTML file."""
    export: Path | None = None
    """The models as a table in Markdown (.md), or everything as JSON (.json)."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.recipes.compare import compare_command
        from chiasm.recipes.eval_task import Asked
        from chiasm.recipes.evaluate import How

        asked = Asked(
            self.task, self.data, self.split, False, self.metric, self.columns, None, self.limit,
            self.seed, self.turns,
        )  # fmt: skip
        how = How(batch=self.batch_size, max_tokens=self.max_tokens, history=self.history)
        compare_command(self.runs, asked, how, out=self.out, export_to=self.export)
