"""What all ingestion shares: many files in, a train and a test half out, bad files reported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show, View
from chiasm.core.sample import Sample
from chiasm.data.formats.messages import TRAIN, missing, write_messages
from chiasm.data.load import TEST

SKIPPED = "skipped.jsonl"

Skip = Callable[[str, str], None]
"""Given what was left out ("report.pdf page 3") and why."""


@dataclass(frozen=True)
class Source:
    """A file or an address. key: the digest of the file's content, or the address."""

    name: str
    key: str
    path: Path | None = None


Read = Callable[[Source, Skip], Iterator[Sample]]
"""Reads one source; raises DataError where nothing of it can be used."""


@dataclass
class Collected:
    """How many samples each half got, and what was left out with its reason."""

    samples: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    skipped: dict[str, str] = field(default_factory=dict)


def files_in(folder: Path, suffixes: Iterable[str], skip: Skip) -> list[Source]:
    """The files below a folder with one of the suffixes (".pdf"), in order of their names; one
    that cannot be opened, or has the content of another, is skipped."""
    if not folder.exists():
        raise missing(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; give the folder that holds it")
    sources: dict[str, Source] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            with path.open("rb") as file:
                key = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            skip(name, f"cannot be opened: {error.strerror}")
            continue
        if key in sources:
            skip(name, f"the same content as {sources[key].name}")
            continue
        sources[key] = Source(name, key, path)
    if not sources:
        raise DataError(f"{folder}: holds no {' or '.join(sorted(suffixes))} file")
    return list(sources.values())


def collect(
    sources: Sequence[Source], read: Read, out: Path, found: Collected, show: Show = Bar
) -> Collected:
    """Write train.jsonl and test.jsonl of all sources, and skipped.jsonl where some were bad.

    A source is wholly in one half: in the order of their keys' hashes the first tenth that can be
    used (at least one of two) is the test half. Raises DataError where a set is there already or
    no source gave a sample.
    """
    train, test = out / TRAIN, out / TEST
    for file in (train, test):
        if file.exists():
            raise DataError(f"{file}: exists already; name another folder or remove the set")
    ranked = sorted(sources, key=lambda s: hashlib.sha256(s.key.encode()).digest())
    wanted, taken = max(len(ranked) // 10, len(ranked) > 1), set()
    with show(out.name, len(sources), 0) as view:

        def tested() -> Iterator[Sample]:
            good = 0
            for source in ranked:
                if good == wanted:
                    break
                taken.add(source.key)
                before = found.samples["test"]
                yield from _samples([source], read, "test", found, view)
                good += found.samples["test"] > before

        write_messages(tested(), test)
        rest = [source for source in sources if source.key not in taken]
        write_messages(_samples(rest, read, "train", found, view), train)
    _tidy(found, train, test)
    if found.skipped:
        rows = (json.dumps({"source": n, "reason": r}) + "\n" for n, r in found.skipped.items())
        (out / SKIPPED).write_text("".join(rows), encoding="utf-8")
    if not found.samples["train"]:
        name, reason = next(iter(found.skipped.items()), ("", "there is nothing to ask about"))
        raise DataError(f"none of {len(sources)} sources gave a sample; {name}: {reason}")
    return found


def _tidy(found: Collected, train: Path, test: Path) -> None:
    """No empty files; the only usable source is for training."""
    if not found.samples["train"]:
        test.replace(train)
        found.samples = {"train": found.samples["test"], "test": 0}
    elif not found.samples["test"]:
        test.unlink()
    if not found.samples["train"]:
        train.unlink()


def _samples(
    sources: Sequence[Source], read: Read, half: str, found: Collected, view: View
) -> Iterator[Sample]:
    for source in sources:
        try:
            for sample in read(source, found.skipped.__setitem__):
                found.samples[half] += 1
                yield sample
        except DataError as error:
            found.skipped[source.name] = str(error)
        view.status(f"{len(found.skipped)} skipped" if found.skipped else "")
        view.advance()
