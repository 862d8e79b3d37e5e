"""WebDataset: tars in which 7.jpg, 7.json and 7.txt are one sample.

The JSON is a record of any shape that formats.rows knows; a .txt or .caption is a caption.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look, files_of
from chiasm.data.formats.media import SUFFIXES, Appearing, image_bytes, suffix
from chiasm.data.formats.messages import json_line, videos_of
from chiasm.data.formats.reading import Reading, Record, folder_name, json_object, samples
from chiasm.data.formats.rows import sample_of
from chiasm.data.formats.tar import Members, groups

SHARD = 1000  # samples in a tar
HERE = Path(".")
CAPTIONS = ("txt", "caption", "text")


def claims(look: Look) -> bool:
    return look.path.suffix == ".tar" or any(name.endswith(".tar") for name in look.names)


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    for file in files_of(path, "*.tar"):
        source = folder_name(file)

        def make(members: Members, where: str, source=source) -> Sample:
            return tar_sample(members, where, source, reading)

        yield from samples(_groups(file), make, source, reading.on_error)


def _groups(file: Path) -> Iterator[Record]:
    """(tar:key, the members of the key by their endings), for consecutive members."""
    try:
        with file.open("rb") as stream:
            for key, _, found in groups(stream):
                yield f"{file.name}:{key}", found
    except OSError as error:
        yield f"{file.name}:", DataError(f"not readable from here on: {error}")


def tar_sample(members: Members, where: str, source: str, reading: Reading | None = None) -> Sample:
    """The sample of one key's members. Raises DataError."""
    return sample_of(_row(members, where), HERE, source, where, reading)


def _row(members: Members, where: str) -> dict:
    row = json_object(members["json"]) if "json" in members else {}
    caption = next((members[ending] for ending in CAPTIONS if ending in members), None)
    if caption is not None and not {"messages", "conversations", "texts"} & row.keys():
        try:
            row["caption"] = caption.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"the caption is not UTF-8: {error.reason}") from None
    if row.get("videos"):
        raise DataError("a video inside a tar is not read; unpack it and import its messages")
    shown = [e for e in sorted(members, key=_order) if f".{e.rpartition('.')[2]}" in SUFFIXES]
    # x.jpg and x.0.jpg are the sample's images; x.seg.png beside them is about them.
    own = [e for e in shown if e.rpartition(".")[0].isdecimal() or "." not in e]
    endings = own or shown
    named = row.pop("image", None), row.get("images")
    if isinstance(named[1], list) and named[1] and all(
        isinstance(name, str) and name in members for name in named[1]
    ):  # fmt: skip
        endings = named[1]
    row["images"] = [members[ending] for ending in endings]
    row |= {ending: True for ending in shown if ending not in endings}
    row.setdefault("id", row.pop("key", None) or where.rpartition(":")[2])
    return row


def _order(ending: str) -> tuple[int, str]:
    """0.jpg, 1.jpg, ... 10.jpg in the order of their numbers."""
    number = ending.partition(".")[0]
    return (int(number) if number.isdecimal() else -1, ending)


def write_webdataset(
    written: Iterable[Sample], folder: Path, split: str = "train", size: int = SHARD
) -> None:
    """train-000000.tar, ... of `size` samples; equal samples make equal bytes."""
    rest = enumerate(written)
    for number in count():
        first = next(rest, None)
        if first is None and number:
            return
        with (
            Appearing(folder / f"{split}-{number:06d}.tar") as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for i, sample in chain([first] if first else [], islice(rest, size - 1)):
                _add(tar, f"{i:09d}", sample)


def _add(tar: tarfile.TarFile, key: str, sample: Sample) -> None:
    if videos_of(sample):
        raise DataError(f"{sample.where}: a tar of ours holds no videos; import --to messages")
    single = len(sample.all_images) == 1
    endings = [
        suffix(image)[1:] if single else f"{i}{suffix(image)}"
        for i, image in enumerate(sample.all_images)
    ]
    members = [(e, image_bytes(image)) for e, image in zip(endings, sample.all_images, strict=True)]
    for ending, data in [*members, ("json", json_line(sample, endings, []))]:
        head = tarfile.TarInfo(f"{key}.{ending}")
        head.size = len(data)
        tar.addfile(head, io.BytesIO(data))


FORMAT = ImageDatasetFormat("webdataset", "WebDataset", claims, read)
