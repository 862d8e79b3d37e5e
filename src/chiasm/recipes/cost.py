"""What a run cost, the parts it was built from included."""

from __future__ import annotations

from pathlib import Path

from chiasm.core.aliases import file_of
from chiasm.core.errors import CheckpointError
from chiasm.eval.compare import Bill
from chiasm.train.checkpoint import read_json
from chiasm.train.log import COST

PARTS = ("encoder", "tokenizer")
"""Fields of a model's configuration that name another run's folder."""


def bill_of(folder: Path) -> Bill:
    """The run's ledger and those of its parts, added up; peak memory is the highest of them. What
    was not trained here (weights of others) costs nothing, and a run without a ledger is not
    known."""
    places = [folder, *parts_of(folder)]
    stages = [stage for place in places for stage in _stages(place)]
    if not stages:
        return Bill()
    peak = max(stage.get("peak_memory", 0.0) for stage in stages)
    return Bill(
        sum(stage["flops"] for stage in stages),
        sum(stage["seconds"] for stage in stages),
        peak or None,
    )


def parts_of(folder: Path) -> list[Path]:
    """The folders of the encoder or tokenizer that a run was given or made beside itself."""
    try:
        model = read_json(folder / "recipe.json")["model"]
    except (CheckpointError, KeyError):
        return []
    named = [(part, model[part]) for part in PARTS if part in model]
    places = [Path(given) if given else folder / part for part, given in named]
    return [place for place in places if file_of(place, COST).exists()]


def _stages(folder: Path) -> list[dict]:
    file = file_of(folder, COST)
    return read_json(file)["stages"] if file.exists() else []
