"""Results for other programs and other people: JSON, or a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError

Row = Mapping[str, object]


def check_export(path: Path) -> None:
    """Raises ConfigError for a name that says no format; to be told before the work is done."""
    if path.suffix not in (".json", ".md"):
        raise ConfigError(f"--export {path}: the name must end in .json or .md")


def export(path: Path, rows: Sequence[Row], record: Any) -> None:
    """The record as .json, or the rows, whose keys are the headings, as .md."""
    check_export(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.suffix == ".json"
    text = json.dumps(record, indent=2, ensure_ascii=False) if whole else markdown(rows)
    path.write_text(text + "\n", encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    """A table whose columns are the keys of all rows in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {n: all(isinstance(r.get(n, 0), (int, float)) for r in rows) for n in names}
    lines = [_line(names), _line(["--:" if numeric[name] else "---" for name in names])]
    lines += [_line([_cell(row.get(name, "")) for name in names]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
