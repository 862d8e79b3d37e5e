"""Samples of a data set or of a mixture of them, and batches of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.reading import Reading
from chiasm.data.load import Split, load_samples
from chiasm.data.mixture import Ingredient, parse
from chiasm.data.objectives import chat
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine, said_of
from chiasm.data.stream import SampleStream
from chiasm.data.turns import Mixed


def loader(
    data: str | Path | Sequence[Sample],
    processor: Processor,
    *,
    batch_tokens: int = 2048,
    seed: int = 0,
    split: Split = "train",
) -> SampleStream:
    """An endless iterator of packed batches of a data set, in an order that the seed decides.

    data: what `chiasm train --data` takes, or samples. processor: of the model (`vlm.processor`).
    batch_tokens: conversations are packed into a row until the next would pass this many; a longer
    conversation is a row of its own. state_dict() says how far it has come, and load_state_dict()
    of a new loader goes on from there. Samples that cannot be used are left out and listed in
    `quarantine.reasons`. Raises DataError where no sample is usable, or most are not.
    """
    quarantine = Quarantine()
    if isinstance(data, (str, Path)):
        data = read(str(data), split, quarantine)
    return SampleStream(data, [chat], processor, batch_tokens, seed, quarantine)


def read(
    data: str, split: Split, quarantine: Quarantine, reading: Reading | None = None
) -> Sequence[Sample]:
    """The samples of a split; bad lines go to the quarantine, the format is confirmed. Of several
    data sets (data/mixture.py) a Mixed; its test half leaves out those that have none."""
    mixture = parse(data)
    if mixture is None:
        return _read(data, split, quarantine, reading)
    if split == "train":
        parts = [
            _read(s.data, split, quarantine, _of_source(s, reading, quarantine))
            for s in mixture.sources
        ]
        return Mixed(parts, mixture)
    return [
        sample
        for s in mixture.sources
        for sample in read_held_out(s.data, _of_source(s, reading, quarantine))
    ]


def _of_source(source: Ingredient, reading: Reading | None, quarantine: Quarantine) -> Reading:
    """How a mixture's source is read: its own folder of images before that of all."""
    reading = reading or Reading(quarantine.record)
    return replace(reading, images=Path(source.images)) if source.images else reading


def _read(
    data: str, split: Split, quarantine: Quarantine, reading: Reading | None = None
) -> Sequence[Sample]:
    console = Console(stderr=True, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    reading = (reading or Reading(quarantine.record)).quiet()
    found = load_samples(data, split, say=say, reading=reading)
    if reading.unused:
        say(said_of(reading.unused))
    quarantine.unused.update(reading.unused)
    return found


def read_held_out(data: str, reading: Reading) -> Sequence[Sample]:
    """The samples of the test half, none where there is none; bad ones are left out."""
    quarantine = Quarantine()
    try:
        return read(data, "test", quarantine, replace(reading, on_error=quarantine.record))
    except DataError:
        return []
