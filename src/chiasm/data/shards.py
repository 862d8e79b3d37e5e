"""Work that falls into shards, done anywhere and in any order, each once.

A shard is a pure function of the work and a number: it writes files of its own, then a manifest,
`.done/NAME.json`, with their hashes. The manifest is the mark that the shard is complete: what a
killed process leaves is written again, what is complete is left alone, and one machine, an array
of Slurm jobs or Ray Data leave the same bytes. When all manifests are there, whoever sees it first
writes what makes the folder whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from chiasm.core.errors import CheckpointError, ConfigError, MissingExtraError
from chiasm.core.progress import Show, silent
from chiasm.data.formats.media import Appearing

DONE = ".done"


class Work(Protocol):
    """fingerprint: of everything that decides the bytes: weights, settings, data. count: shards."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def count(self) -> int: ...

    def name(self, number: int) -> str:
        """How the names of a shard's files begin."""
        ...

    def write(self, number: int, folder: Path) -> dict[str, Any]:
        """Write a shard's files into an empty folder; what its manifest says of them."""
        ...

    def finish(self, out: Path, manifests: Sequence[dict[str, Any]]) -> None:
        """Write what makes the folder whole; several processes may do it at once."""
        ...


class Plan(Protocol):
    """What makes the work where it is done: small, picklable, the same in every process. threads:
    its time passes outside Python, so that threads share a machine better than processes, which
    begin with seconds of imports."""

    @property
    def threads(self) -> bool: ...

    def work(self) -> Work: ...


def numbers_of(count: int, index: int, of: int) -> range:
    """The shards of job `index` of an array of `of` jobs. Raises ConfigError for another index."""
    if not 0 <= index < of:
        raise ConfigError(f"--array-index {index}: an array of {of} has 0 to {of - 1}; "
                          "give --array-count as well")  # fmt: skip
    return range(index, count, of)


def run_shards(
    work: Work, out: Path, numbers: Sequence[int] | None = None, show: Show = silent
) -> list[dict[str, Any]] | None:
    """Write the shards of these numbers (None: all) that are not complete, and finish if all are;
    all manifests then, else None. Raises CheckpointError if the folder holds other work's."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = range(work.count) if numbers is None else numbers
    with show("shards", len(chosen), 0) as view:
        for number in chosen:
            run_shard(work, number, out)
            view.advance()
    return finish(work, out)


def run_shard(work: Work, number: int, out: Path) -> None:
    """Write one shard, unless it is complete."""
    if manifest(work, number, out) is not None:
        return
    name = work.name(number)
    unfinished = out / f".{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        said = work.write(number, unfinished)
        files = sorted(file for file in unfinished.rglob("*") if file.is_file())
        hashes = {f.relative_to(unfinished).as_posix(): _sha256(f) for f in files}
        for file in files:
            place = out / file.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        _write(out / DONE / f"{name}.json", {"work": work.fingerprint, "files": hashes, **said})
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def finish(work: Work, out: Path) -> list[dict[str, Any]] | None:
    """All manifests, if all shards are complete, with the folder made whole; else None."""
    found = [manifest(work, number, out) for number in range(work.count)]
    whole = [one for one in found if one is not None]
    if len(whole) < len(found):
        return None
    work.finish(out, whole)
    return whole


def manifest(work: Work, number: int, out: Path) -> dict[str, Any] | None:
    """What a complete shard's says; None if it is not complete. Raises CheckpointError if it is
    of other work."""
    file = out / DONE / f"{work.name(number)}.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if said.get("work") != work.fingerprint:
        raise CheckpointError(
            f"{file}: made by other weights, settings or data ({str(said.get('work'))[:12]}, now "
            f"{work.fingerprint[:12]}); choose another folder or delete this one"
        )
    return said if all((out / name).is_file() for name in said["files"]) else None


def run_by_workers(plan: Plan, out: Path, workers: int) -> list[dict[str, Any]] | None:
    """As run_shards, by threads or processes of this machine."""
    if plan.threads:
        work = plan.work()
        out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(lambda number: run_shard(work, number, out), range(work.count)))
        return finish(work, out)
    jobs = [(plan, out, index, workers) for index in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_job, jobs))
    return finish(plan.work(), out)


def _job(job: tuple[Plan, Path, int, int]) -> None:
    plan, out, index, of = job
    work = plan.work()
    run_shards(work, out, numbers_of(work.count, index, of))


def run_on_ray(plan: Plan, out: Path, workers: int) -> list[dict[str, Any]] | None:
    """As run_shards, by Ray Data: on this machine, or on the cluster whose address is in
    RAY_ADDRESS, where `out` must be a folder that all its machines see."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("ray", "ray", "--ray") from None
    work, out = plan.work(), out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    # A block a shard. Not repartitioned: that wants a processor of its own, and waits for ever
    # where the workers hold them all.
    rows = ray.data.from_items(
        [{"number": n} for n in range(work.count)], override_num_blocks=work.count
    )
    pool = ray.data.ActorPoolStrategy(size=min(workers, work.count))
    rows.map(_Worker, fn_constructor_args=(plan, out), compute=pool).materialize()
    return finish(work, out)


class _Worker:
    """A process of Ray's, which makes the work once and does many shards of it."""

    def __init__(self, plan: Plan, out: Path):
        self.work, self.out = plan.work(), out

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        run_shard(self.work, int(row["number"]), self.out)
        return row


def fingerprint(*parts: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _write(file: Path, value: Any) -> None:
    with Appearing(file) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
