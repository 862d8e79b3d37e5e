"""Making a set of one kind: distinct contents first, then images in parallel.

Everything about sample `index` is a function of (kind, seed, index), so the number of workers
changes nothing in the files.
"""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import TRAIN, write_messages
from chiasm.data.load import TEST
from chiasm.data.synthetic import charts, documents, forms, pages, receipts, scenes, slips, tables
from chiasm.data.synthetic.kind import Kind
from chiasm.data.synthetic.split import split_of

KINDS: dict[str, Kind] = {
    "charts": charts.KIND,
    "tables": tables.KIND,
    "receipts": receipts.KIND,
    "forms": forms.KIND,
    "pages": pages.KIND,
    "scenes": scenes.KIND,
    "documents": documents.KIND,
    "slips": slips.KIND,
}


def make(
    kind: str, out: Path, count: int, seed: int = 0, workers: int = 1, show: Show = Bar
) -> dict[str, int]:
    """Write `count` training samples and a tenth as many test samples of a kind; how many of each.

    No content comes twice, and the halves share no key (split.py). Raises ConfigError for an
    unknown kind, a count or a number of workers below 1, DataError where a set is there already
    or the kind has no more different contents.
    """
    if kind not in KINDS:
        hint = nearest(kind, KINDS) or f"; use {', '.join(KINDS)}"
        raise ConfigError(f"unknown kind '{kind}'{hint}")
    if count < 1 or workers < 1:
        raise ConfigError(f"--count {count} --workers {workers}: both must be at least 1")
    files = {"train": out / TRAIN, "test": out / TEST}
    for file in files.values():
        if file.exists():
            raise DataError(f"{file}: exists already; name another folder or remove the set")
    wanted = {"train": count, "test": max(1, count // 10)}
    indices = distinct(kind, seed, wanted)
    with _mapping(workers) as mapping, show(kind, sum(wanted.values()), 0) as view:
        for half, file in files.items():

            def samples(half: str = half) -> Iterator[Sample]:
                for sample in mapping(partial(make_sample, kind, seed), indices[half]):
                    yield sample
                    view.advance()

            write_messages(samples(), file)
    return wanted


def distinct(kind: str, seed: int, wanted: dict[str, int]) -> dict[str, list[int]]:
    """The first indices whose contents differ, so many for each half."""
    chosen: dict[str, list[int]] = {half: [] for half in wanted}
    seen: set[str] = set()
    index = idle = 0
    while any(len(chosen[half]) < wanted[half] for half in wanted):
        content = KINDS[kind].draw(_random(kind, seed, index, "draw"))
        half = split_of(kind, KINDS[kind].key(content))
        text = json.dumps(content, sort_keys=True)
        idle += 1
        if text not in seen and len(chosen[half]) < wanted[half]:
            seen.add(text)
            chosen[half].append(index)
            idle = 0
        index += 1
        if idle > 10_000:
            raise DataError(
                f"{kind}: after {len(seen)} of {sum(wanted.values())} samples there is nothing "
                "new; lower --count"
            )
    return chosen


def make_sample(kind: str, seed: int, index: int) -> Sample:
    """One sample: the image as PNG, its questions as independent turns; meta records kind, key,
    content, caption, boxes in pixels and the type of every question."""
    made = KINDS[kind]
    content = made.draw(_random(kind, seed, index, "draw"))
    rendered = made.render(content, _random(kind, seed, index, "render"))
    asked = made.ask(content, rendered, _random(kind, seed, index, "ask"))
    file = io.BytesIO()
    rendered.image.save(file, "PNG")
    image = Image(file.getvalue(), f"{kind} {index} of seed {seed}")
    turns = []
    for n, one in enumerate(asked):
        turns += [user(*[image][n:], one.question), assistant(one.answer)]
    meta = {
        "kind": kind,
        "key": made.key(content),
        "caption": made.caption(content),
        "types": [one.type for one in asked],
        "content": content,
        "boxes": {name: [round(x, 1) for x in box] for name, box in rendered.boxes.items()},
    }
    return Sample(tuple(turns), f"{kind}-{seed}-{index}", kind, True, meta)


def _random(kind: str, seed: int, index: int, purpose: str) -> Random:
    """Seeded by text, which Python hashes the same everywhere."""
    return Random(f"{kind}/{seed}/{index}/{purpose}")


@contextmanager
def _mapping(workers: int) -> Iterator[Callable]:
    """map itself, or an ordered one over so many processes."""
    if workers == 1:
        yield map
        return
    # Spawned: a fork of a process in which torch has started threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        yield partial(pool.map, chunksize=8)
