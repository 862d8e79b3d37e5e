"""`chiasm data make | pdf | shots | video`: the commands that make a data set from something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

Out = Annotated[Path, arg(aliases=["-o"])]


def make(kind: Positional[str], out: Out, count: int = 1000, seed: int = 0, workers: int = 1) -> None:
    """Make pictures with exact questions and answers.

    Args:
        kind: charts, tables, receipts, forms, pages, scenes or documents.
        out: Folder for train.jsonl, test.jsonl and images/.
        count: Training samples; a tenth as many test samples are added, sharing no content.
        seed: Another seed, another set.
        workers: Processes; their number changes nothing in the files.
    """
    from chiasm.data.synthetic.make import make as made

    for half, number in made(kind, out, count, seed, workers).items():
        Console().print(f"{half}: {number} samples in {escape(str(out / half))}.jsonl")


COMMANDS = (make,)
