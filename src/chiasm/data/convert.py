"""Any known format to one of those that are written; what cannot be used is listed beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.messages import videos_of
from chiasm.data.formats.reading import Reading
from chiasm.data.formats.registry import WRITERS, Write
from chiasm.data.load import Source, open_data
from chiasm.data.parallel import mapped
from chiasm.data.quarantine import Quarantine

BAD = "quarantine.jsonl"


@dataclass(frozen=True)
class Imported:
    """The title of the format read, samples written by split, records left out with reasons."""

    title: str
    counts: dict[str, int]
    quarantine: Quarantine


def writer(name: str) -> Write:
    """The writer of a format. Raises ConfigError for one that is not written."""
    if name not in WRITERS:
        raise ConfigError(
            f"--to {name}: not a format that is written{nearest(name, WRITERS)}; "
            f"choose {', '.join(WRITERS)}"
        )
    return WRITERS[name]


def convert(
    data: str,
    out: Path,
    to: str = "messages",
    name: str | None = None,
    images: Path | None = None,
    workers: int = 1,
    strict: bool = False,
) -> Imported:
    """Write all usable samples of `data` into the folder `out`; every image is decoded once.

    name: the format of `data` where it does not show. images: the folder that its image paths are
    relative to ("/": its absolute ones are allowed). workers: threads that decode. strict: a
    record with a key that is not used cannot be used. Records and samples that cannot be used go to
    out/quarantine.jsonl, none is replaced. Raises DataError if no sample is left.
    """
    write = writer(to)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; name a new folder")
    quarantine = Quarantine(out / BAD, limit=1.0)
    reading = Reading(quarantine.record, images, strict=strict, unused=quarantine.unused)
    sources = open_data(data, name, reading=reading)
    counts: Counter[str] = Counter()

    def usable(split: str, source: Source) -> Iterator[Sample]:
        for sample, error in mapped(_checked, source.samples, workers):
            if error is not None:
                quarantine.sample(sample, error)
                continue
            counts[split] += 1
            yield sample

    for split, source in sources.items():
        write(usable(split, source), out, split)
    quarantine.write_unused()
    if not counts:
        raise DataError(
            f"{data}: none of {len(quarantine)} records can be used; see {out / BAD}"
            if len(quarantine)
            else f"{data}: holds no records"
        )
    title = next(iter(sources.values())).format.title
    return Imported(title, dict(counts), quarantine)


def _checked(sample: Sample) -> tuple[Sample, DataError | None]:
    try:
        check_media(sample)
    except DataError as error:
        return sample, error
    return sample, None


def check_media(sample: Sample) -> None:
    """Decode every image and look for every clip. Raises DataError for one that fails."""
    check_clips(sample)
    for image in sample.all_images:
        image.load()


def check_clips(sample: Sample) -> None:
    """Raises DataError for a clip that is not there."""
    for video in videos_of(sample):
        if not video.path.is_file():
            raise DataError(
                f"{video.path}: no such video ({video.where}); correct the path or remove the "
                "sample"
            )
