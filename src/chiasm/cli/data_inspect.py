"""chiasm data inspect."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from chiasm.cli.options import ReadingOptions, Source, say
from chiasm.core.errors import ConfigError


@dataclass(kw_only=True)
class Inspect(ReadingOptions):
    """Measure a data set before training: counts, sizes, languages, doubles, what is unusable."""

    source: Source
    """A file or folder in a known format, or hf:ORG/NAME."""
    out: Annotated[Path | None, arg(metavar="FILE.html", aliases=["-o"])] = None
    """The HTML page (default runs/inspect/NAME.html); the whole report is beside it as JSON."""
    tokenizer: Path | None = None
    """A tokenizer.json, or the folder of one or of a run, to count tokens with."""
    labels: bool = False
    """Instead print which tokens carry loss, in colour, and samples that teach nothing."""
    model: str = "mllm_smol"
    """Whose template decides the labels: a recipe's name or file, or the folder of a run."""
    samples: int = 5
    """So many samples' labels are printed; all of them are checked."""
    workers: int = 1
    """Threads that decode."""

    def __call__(self) -> None:
        if self.labels:
            from chiasm.recipes.labels import inspect_labels

            return inspect_labels(self.source, self.model, self.samples)
        from chiasm.data.inspect.measure import inspect_data
        from chiasm.data.inspect.page import write_page
        from chiasm.data.inspect.show import show

        count = _token_counter(self.tokenizer) if self.tokenizer else None
        console = Console()
        with console.status("inspecting"):
            found = inspect_data(
                self.source, self.format, self.images, count, workers=self.workers,
                strict=self.strict,
            )  # fmt: skip
        page = self.out or Path("runs/inspect") / f"{_stem(self.source)}.html"
        write_page(found, page)
        show(found, console)
        say(f"the page: {page}, all of it: {page.with_suffix('.json')}")


def _token_counter(path: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    file = path
    if path.is_dir():
        file = next(iter(sorted(path.rglob("tokenizer.json"))), path / "tokenizer.json")
    if not file.is_file():
        raise ConfigError(f"--tokenizer {path}: no tokenizer.json there; name the file")
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _stem(source: str) -> str:
    """A file name from a path or a name on the hub."""
    return re.sub(r"\W+", "-", Path(source).expanduser().resolve().stem) or "data"
