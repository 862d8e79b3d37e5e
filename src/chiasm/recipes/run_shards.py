"""Shards of work, where the command line says: here, in a Slurm array, on Ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from chiasm.core import aliases
from chiasm.core.progress import Bar
from chiasm.data.shards import Plan, numbers_of, run_by_workers, run_on_ray, run_shards


def run_sharded(
    plan: Plan, out: Path, index: int | None = None, of: int = 1, ray: int = 0, workers: int = 1
) -> None:
    """Write all shards of the plan, by so many workers here or of Ray, or those of job `index` of
    an array of `of`; what is complete is left alone. Says what the folder holds then."""
    if ray:
        done = run_on_ray(plan, out, ray)
    elif workers > 1 and index is None:
        done = run_by_workers(plan, out, workers)
    else:
        work = plan.work()
        numbers = None if index is None else numbers_of(work.count, index, of)
        done = run_shards(work, out, numbers, Bar)
    if done is None:
        return _say(f"{out}: the shards of this job are complete, others are not yet")
    counts: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    for one in (aliases.keys(record, aliases.RESULTS) for record in done):
        counts.update({key: one[key] for key in ("kept", "images") if key in one})
        counts.update(f"dropped by {drop['rule']}" for drop in one.get("dropped", ()))
        bad += one.get("unusable", {}).items()
    said = "".join(f", {count:,} {name}" for name, count in counts.items())
    _say(f"{out}: complete, {len(done):,} shards{said}, {len(bad):,} unusable")
    for where, why in bad[:5]:
        _say(f"  {where}: {why}")


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
