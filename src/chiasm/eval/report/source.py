"""What a run left behind, read tolerantly: a missing part becomes a note, not an error."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chiasm.core.aliases import file_of
from chiasm.core.errors import DataError

MODELS = {
    "encoder": "Visual encoder",
    "tokenizer": "Image tokenizer",
    "mllm": "MLLM",
    "unified": "Unified",
}
ROUTES = ("mllm", "unified")


@dataclass
class Run:
    """The files of one folder. Every dictionary is by model; absent ones are missing from it.

    metrics: log lines; ledgers: stages; predictions and blind: replies; drawings: caption -> files
    in order; notes: what was not found or could not be read.
    """

    folder: Path
    summary: dict[str, Any]
    metrics: dict[str, list[dict]] = field(default_factory=dict)
    ledgers: dict[str, list[dict]] = field(default_factory=dict)
    predictions: dict[str, list[dict]] = field(default_factory=dict)
    blind: dict[str, list[dict]] = field(default_factory=dict)
    drawings: dict[str, list[Path]] = field(default_factory=dict)
    reconstructions: Path | None = None
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> dict:
        """A section of the summary, empty when it is missing."""
        value = self.summary.get(name)
        return value if isinstance(value, dict) else {}

    def number(self, *keys: str) -> float | None:
        """A finite number of the summary by its path, or None."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return number(value)


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def read(folder: Path) -> Run:
    """Raises DataError when the folder has no readable summary.json."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{path}: no summary to report; run the evaluation first") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}; write it again") from None
    if not isinstance(summary, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(summary).__name__}")
    run = Run(folder, summary)
    for model in MODELS:
        _lines(run, run.metrics, model, "metrics.jsonl")
        _ledger(run, model)
    for route in ROUTES:
        _lines(run, run.predictions, route, "predictions.jsonl")
        _lines(run, run.blind, route, "blind.jsonl")
    _drawings(run)
    image = folder / "tokenizer" / "reconstructions.png"
    if image.is_file():
        run.reconstructions = image
    else:
        run.notes.append("tokenizer/reconstructions.png is missing")
    return run


def _lines(run: Run, into: dict[str, list[dict]], model: str, name: str) -> None:
    path = run.folder / model / name
    if not path.is_file():
        run.notes.append(f"{model}/{name} is missing")
        return
    good, bad = [], 0
    for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            good.append(record)
        else:
            bad += 1
    if bad:
        run.notes.append(f"{model}/{name}: {bad} unreadable line{'s' if bad > 1 else ''} skipped")
    if good:
        into[model] = good


def _ledger(run: Run, model: str) -> None:
    path = file_of(run.folder / model, "cost.json")
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        run.ledgers[model] = [stage for stage in stages if isinstance(stage, dict)]
    except OSError:
        run.notes.append(f"{model}/cost.json is missing")
    except (ValueError, KeyError, TypeError):
        run.notes.append(f"{model}/cost.json is not a record of costs")


def _drawings(run: Run) -> None:
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in (run.folder / "unified" / "drawings").glob("*.png"):
        words, _, place = path.stem.rpartition("-")
        if words and place.isdigit():
            found.setdefault(words.replace("-", " "), []).append((int(place), path))
    if not found:
        run.notes.append("unified/drawings has no images")
    known = list(run.part("unified").get("t2i_per_caption") or {})
    order = [c for c in known if c in found] + sorted(set(found) - set(known))
    run.drawings = {caption: [p for _, p in sorted(found[caption])] for caption in order}
