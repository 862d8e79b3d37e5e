"""VLMEvalKit TSV: index, question, answer, the options A, B, C ..., and the image as base64.

`image` may hold a list of images, or the index of an earlier row whose image it shares;
`image_path` names files instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chiasm.core.sample import Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look, files_of
from chiasm.data.formats.reading import Reading, folder_name, samples, table_rows
from chiasm.data.formats.rows import sample_of
from chiasm.data.formats.shared_images import SharedImages
from chiasm.data.splits import split_of


def claims(look: Look) -> bool:
    return look.path.suffix == ".tsv" or any(name.endswith(".tsv") for name in look.names)


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    for file in files_of(path, "*.tsv"):
        source = folder_name(file) if split_of(file.stem) else file.stem
        root, shared = reading.root(file.parent), SharedImages()

        def make(row: dict, where: str, root=root, shared=shared, source=source) -> Sample:
            return sample_of(shared.resolved(row), root, source, where, reading)

        yield from samples(table_rows(file, "\t"), make, source, reading.on_error)


FORMAT = ImageDatasetFormat("vlmevalkit", "VLMEvalKit TSV", claims, read)
