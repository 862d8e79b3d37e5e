"""An inspection in the terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from chiasm.data.inspect.measure import Inspection
from chiasm.data.inspect.page import summary
from chiasm.data.load import detected
from chiasm.data.quarantine import said_of


def show(found: Inspection, console: Console) -> None:
    """One line that confirms the format, then the numbers, then what is wrong."""
    numbers = summary(found)
    line = detected(found.title, len(found.seen) + len(found.unusable))
    console.print(line, markup=False, highlight=False)
    table = Table(show_header=False, box=None)
    splits = ", ".join(f"{count:,} {split}" for split, count in numbers["samples"].items())
    for name, value in (
        ("usable samples", splits or "0"),
        ("unusable", _counts(Counter(u.kind for u in found.unusable)) or "0"),
        ("pictures", f"{numbers['pictures']:,}  {_counts(numbers['picture formats'])}"),
        ("width", _range(numbers["width"])),
        ("height", _range(numbers["height"])),
        (f"text tokens{'' if found.exact_tokens else ' (est.)'}", _range(numbers["tokens"])),
        ("languages", _counts(numbers["languages"])),
        ("pictures alike", f"{sum(map(len, found.alike)):,} in {len(found.alike):,} groups"),
        ("test seen in training", f"{found.leaked:,} pictures"),
        ("odd", _counts(found.odd) or "nothing"),
        ("not used", said_of(found.unused) or "nothing"),
    ):
        table.add_row(name, value)
    console.print(table, highlight=False)
    for bad in found.unusable[:10]:
        console.print(f"  {bad.key}: {bad.reason}", markup=False, highlight=False, soft_wrap=True)
    if len(found.unusable) > 10:
        console.print(f"  and {len(found.unusable) - 10:,} more", highlight=False)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(8))


def _range(spread: dict) -> str:
    if "median" not in spread:
        return "none"
    return f"{spread['least']:,} to {spread['most']:,}, median {spread['median']:,}"
