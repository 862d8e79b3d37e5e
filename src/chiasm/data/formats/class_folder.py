"""A folder of folders of images, each called as the class of its images: cat/1.jpg, dog/2.jpg."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chiasm.core.sample import Image, Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.media import SUFFIXES
from chiasm.data.formats.plain import ENDINGS
from chiasm.data.formats.reading import Reading, Record, folder_name, samples
from chiasm.data.formats.rows import described

OTHERS = (".json", ".jsonl", ".parquet", ".tar", ".csv", ".tsv", ".arrow", *ENDINGS)
"""What says more of images than the folder they are in."""


def claims(look: Look) -> bool:
    """At least two folders of images, and nothing that says more of them."""
    if any(Path(name).suffix in OTHERS for name in look.names):
        return False
    return len([name for name in look.names if _is_class(look.path / name)]) >= 2


def _is_class(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    suffixes = {file.suffix.lower() for file in folder.iterdir()}
    return bool(suffixes & {*SUFFIXES}) and not suffixes & {*OTHERS}


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    source = folder_name(path)

    def make(file: Path, where: str) -> Sample:
        label = file.parent.name
        meta = {"label": label, "where": where}
        name = file.relative_to(path).with_suffix("").as_posix()
        return described((Image(file, where),), [label.replace("_", " ")], name, source, meta)

    return samples(_images(path), make, source, reading.on_error)


def _images(path: Path) -> Iterator[Record]:
    for file in sorted(path.glob("*/*")):
        if file.suffix.lower() in SUFFIXES:
            yield file.relative_to(path).as_posix(), file


FORMAT = ImageDatasetFormat("class-folder", "folders of images by class", claims, read)
