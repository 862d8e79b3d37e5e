"""A plain folder of x.jpg with x.txt or x.caption beside it, also in folders below it (kohya's
10_name): every non-empty line of the text is a caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample
from chiasm.data.formats.format import ImageDatasetFormat, Look
from chiasm.data.formats.media import SUFFIXES
from chiasm.data.formats.reading import LONGEST, Reading, Record, folder_name, samples
from chiasm.data.formats.rows import described

ENDINGS = (".txt", ".caption")


def claims(look: Look) -> bool:
    if not look.path.is_dir() or look.file or {"metadata.jsonl", "metadata.csv"} & {*look.names}:
        return False
    below = (look.path / name for name in look.names)
    return _captioned(look.names) or any(
        _captioned([file.name for file in folder.iterdir()]) for folder in below if folder.is_dir()
    )


def _captioned(names: list[str]) -> bool:
    stems = {Path(n).stem for n in names if Path(n).suffix.lower() in SUFFIXES}
    return any(n.endswith(ENDINGS) and Path(n).stem in stems for n in names)


def read(path: Path, reading: Reading) -> Iterable[Sample]:
    source = folder_name(path)

    def make(file: Path, where: str) -> Sample:
        name = file.relative_to(path).with_suffix("").as_posix()
        captions = _words(_beside(file)).splitlines()
        return described((Image(file, where),), captions, name, source, {"where": where})

    return samples(_images(path), make, source, reading.on_error)


def _images(path: Path) -> Iterator[Record]:
    """The images, and the texts that stand beside none."""
    files = sorted(path.rglob("*"))
    images = {file for file in files if file.suffix.lower() in SUFFIXES}
    captioned = {image.with_suffix(ending) for image in images for ending in ENDINGS}
    for file in files:
        if file in images:
            yield file.relative_to(path).as_posix(), file
        elif file.suffix in ENDINGS and file not in captioned:
            yield (
                file.relative_to(path).as_posix(),
                DataError("no image of its name beside it; add it (jpg, png, ...) or remove it"),
            )


def _beside(image: Path) -> Path:
    """The caption's file of an image: the .txt unless only another one is there."""
    files = [image.with_suffix(ending) for ending in ENDINGS]
    return next((file for file in files if file.is_file()), files[0])


def _words(file: Path) -> str:
    try:
        if file.stat().st_size > LONGEST:
            raise DataError(f"{file.name} is larger than {LONGEST:,} bytes; shorten the caption")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name} is not UTF-8: {error.reason}; save it as UTF-8") from None
    except OSError:
        raise DataError(f"no readable {file.name} beside it; write its caption there") from None


FORMAT = ImageDatasetFormat("plain", "folder of images with .txt", claims, read)
