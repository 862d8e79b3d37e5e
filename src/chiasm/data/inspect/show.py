"""An inspection in the terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from chiasm.core.sample import Image, Message, Part, Text
from chiasm.data.inspect.measure import Inspection, Seen
from chiasm.data.inspect.page import spaced, summary
from chiasm.data.load import detected
from chiasm.data.quarantine import said_of
from chiasm.data.resolution import LEGIBLE

AS_READ, MOST_TURNS = 5, 6  # samples that are printed; messages of each


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
        ("images", f"{numbers['images']:,}  {_counts(numbers['image formats'])}"),
        ("clips", f"{numbers['clips']:,}"),
        ("width", _range(numbers["width"])),
        ("height", _range(numbers["height"])),
        ("text in images", _text(found)),
        (f"text tokens{'' if found.exact_tokens else ' (est.)'}", _range(numbers["tokens"])),
        ("languages", _counts(numbers["languages"])),
        ("images alike", f"{sum(map(len, found.alike)):,} in {len(found.alike):,} groups"),
        ("test seen in training", f"{found.leaked:,} images"),
        ("odd", _counts(found.odd) or "nothing"),
        ("not used", said_of(found.unused) or "nothing"),
    ):
        table.add_row(name, value)
    console.print(table, highlight=False)
    for seen in spaced(found.seen, AS_READ):
        console.print(_as_read(seen), markup=False, highlight=False, soft_wrap=True)
    for bad in found.unusable[:10]:
        console.print(f"  {bad.key}: {bad.reason}", markup=False, highlight=False, soft_wrap=True)
    if len(found.unusable) > 10:
        console.print(f"  and {len(found.unusable) - 10:,} more", highlight=False)


def _as_read(seen: Seen) -> str:
    """A sample as it is read, its images and clips where they stand in the text."""
    sizes = iter(seen.images)

    def part(one: Part) -> str:
        if isinstance(one, Text):
            return one.text
        if isinstance(one, Image):
            shown = next(sizes)
            return f"[image {shown.name} {shown.width}x{shown.height}]"
        return f"[video {one.path.name}]"

    lines = [f"— {seen.name} ({seen.split})"]
    labels = {None: "", True: " (good)", False: " (bad)"}

    def line(turn: Message, note: str = "") -> str:
        text = " ".join("".join(map(part, turn.content)).split())
        learnt = note if turn.supervised else " (not learnt)"
        return f"  {turn.role}{learnt}: {text if len(text) <= 300 else text[:300] + '…'}"

    turns, verdict = seen.sample.turns, labels[seen.sample.desired]
    notes = [verdict if n == len(turns) - 1 else "" for n in range(len(turns))]
    told = [line(turn, note) for turn, note in zip(turns, notes, strict=True)]
    lines += told[:MOST_TURNS]
    lines += [line(turn, " (rejected)") for turn in seen.sample.rejected]
    return "\n".join(lines)


def _text(found: Inspection) -> str:
    """The height of the lines of text, and the size of an image that they need."""
    looked = found.resolution
    if looked is None or looked.text is None:
        return "none found"
    need = f", legible from {LEGIBLE / looked.text:.0%} of the size" * (looked.text > LEGIBLE)
    return f"{looked.text:.0f} px lines in {looked.with_text} of {looked.images}{need}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(8))


def _range(spread: dict) -> str:
    if "median" not in spread:
        return "none"
    return f"{spread['least']:,} to {spread['most']:,}, median {spread['median']:,}"
