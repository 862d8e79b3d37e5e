"""A data set by its name, folder or file, in two halves that never share a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa
from chiasm.data.blob import Blob, blobs, is_url, local
from chiasm.data.formats import huggingface
from chiasm.data.formats.format import files_of
from chiasm.data.formats.messages import find_jsonl, missing
from chiasm.data.formats.reading import OnError
from chiasm.data.formats.registry import MESSAGES, NAMES, Format, by_name, detect
from chiasm.data.halves import held_out, keys
from chiasm.data.indexed import open_indexed

Split = Literal["train", "test"]
Say = Callable[[str], object]

TEST = "test.jsonl"
LARGE = 64 * 2**20  # bytes of JSON lines: more are not held in memory
BUILT_IN = ("easy-vqa",)


def load_samples(
    data: str, split: Split, on_error: OnError | None = None, say: Say | None = None
) -> Sequence[Sample]:
    """One half of a data set: "easy-vqa", "hf:ORG/NAME", a file or folder in a known format,
    after "FORMAT:" where it does not show, or a URL of .tar or .jsonl files. Tars, JSON lines of
    more than LARGE bytes and URLs stay where they are (data/indexed.py).

    Where there is no test file, a tenth of the samples is the test half and the rest is for
    training (data/halves.py). Raises DataError when the path does not exist or the half is empty;
    on_error is for the bad records, as in read_messages; `say` gets the line that confirms the
    format.
    """
    if data in BUILT_IN:
        return easy_vqa.load(split)
    if is_url(data):
        half, title = _at_url(data, split, on_error)
        if say is not None:
            say(detected(title, len(half), split))
        return half
    if data.startswith(huggingface.PREFIX):
        rows, whole = huggingface.stream(data, split, on_error)
        samples, place, title = list(rows), data, huggingface.FORMAT.title
    else:
        name, path = _prefixed(data)
        if not path.exists():
            raise missing(path, BUILT_IN)
        places, whole = _choose(path, split, name)
        source = open_source(places, name, on_error)
        place, title = str(places[0]), source.format.title
        if found := _large(places, source.format):
            indexed = open_indexed(found, on_error)
            samples = indexed if whole else indexed.half(split == "test")
            whole = True
        else:
            samples = list(source.samples)
    half = samples if whole else _divide(samples, split)
    if not half:
        raise DataError(
            f"{place}: {len(samples)} usable samples leave none for the {split} split; "
            f"add samples{'' if whole else f' or a {TEST}'}"
        )
    if say is not None:
        say(detected(title, len(half), split))
    return half


def _large(places: list[Path], format: Format) -> list[Blob]:
    """The files that are read by an index; none where the samples are held in memory."""
    if format.name == "webdataset":
        return [local(file) for place in places for file in files_of(place, "*.tar")]
    if format.name != MESSAGES.name:
        return []
    files = [find_jsonl(place) for place in places]
    large = sum(file.stat().st_size for file in files) > LARGE
    return [local(file) for file in files] if large else []


def _at_url(url: str, split: Split, on_error: OnError | None) -> tuple[Sequence[Sample], str]:
    """One half of the files at a URL, and the title of their format: those called train... and
    test..., or all of them divided by id."""
    found = blobs(url)
    named: dict[Split, list[Blob]] = {
        half: [b for b in found if re.match(rf"{half}[-_.]", b.name)] for half in ("train", "test")
    }
    title = "WebDataset" if found[0].name.endswith(".tar") else MESSAGES.title
    if named["train"] and named["test"]:
        half: Sequence[Sample] = open_indexed(named[split], on_error)
    else:
        half = open_indexed(found, on_error).half(split == "test")
    if not half:
        raise DataError(f"{url}: no usable sample is left for the {split} split; add samples")
    return half, f"{title} at a URL"


@dataclass(frozen=True)
class Source:
    """Samples as they are read, and the format they are in."""

    format: Format
    samples: Iterator[Sample]


def open_source(
    places: list[Path],
    name: str | None = None,
    on_error: OnError | None = None,
    images: Path | None = None,
) -> Source:
    """All samples of files or folders in one format, found by looking unless it is named."""
    for place in places:
        if not place.exists():
            raise missing(place)
    format = by_name(name) if name else detect(places[0])

    def read() -> Iterator[Sample]:
        for place in places:
            yield from format.read(place, on_error, images)

    return Source(format, read())


def open_data(
    data: str, name: str | None = None, on_error: OnError | None = None, images: Path | None = None
) -> dict[str, Source]:
    """All samples of a path or an hf: name under "train" and "test", as far as it has them of its
    own; a file or a folder without a split is "train"."""
    if is_url(data):
        found = blobs(data)
        kind = by_name("webdataset" if found[0].name.endswith(".tar") else MESSAGES.name)
        return {"train": Source(kind, iter(open_indexed(found, on_error)))}
    if data in BUILT_IN:
        raise DataError(f"{data} is built in and needs no import; give a file or a folder")
    if data.startswith(huggingface.PREFIX):
        streams = {s: huggingface.stream(data, s, on_error) for s in ("train", "test")}
        used = ("train", "test") if streams["test"][1] else ("train",)
        return {s: Source(huggingface.FORMAT, streams[s][0]) for s in used}
    given, path = _prefixed(data)
    name = name or given
    if not path.exists():
        raise missing(path, BUILT_IN)
    if path.is_file():
        split = "test" if path.stem == "test" else "train"
        return {split: open_source([path], name, on_error, images)}
    places: dict[str, list[Path]] = {}
    test, whole = _choose(path, "test", name)
    try:
        places["train"] = _choose(path, "train", name)[0]
    except DataError:
        if not whole:
            raise
    if whole:
        places["test"] = test
    return {s: open_source(found, name, on_error, images) for s, found in places.items()}


def detected(title: str, count: int, split: str = "") -> str:
    """The line that confirms a format."""
    samples = f"{count:,} sample{'s' * (count != 1)}"
    return f"detected: {title}, {samples}{f' ({split})' if split else ''}"


def _prefixed(data: str) -> tuple[str | None, Path]:
    """FORMAT:PATH as its halves; a path alone has no format."""
    name, colon, rest = data.partition(":")
    if colon and name in NAMES and not Path(data).exists():
        return name, Path(rest).expanduser()
    return None, Path(data).expanduser()


def _choose(path: Path, split: Split, name: str | None) -> tuple[list[Path], bool]:
    """What to read, and whether all of it belongs to the split."""
    suffix = path.suffix if path.is_file() else ".jsonl"
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not _is_messages(path, name):
        return _choose_named(path, split)
    test, train = folder / f"test{suffix}", _train_file(folder, suffix)
    if path.is_dir():
        path = test if split == "test" and test.is_file() else train or find_jsonl(path)
    if path == test:
        if split == "train":
            raise DataError(f"{path}: a test set is not trained on; add train{suffix} beside it")
        return [test], True
    if path == train and test.is_file():
        return [test if split == "test" else path], True
    return [path], False


def _is_messages(folder: Path, name: str | None) -> bool:
    """A folder of .jsonl files, split by their names; side files of other formats apart."""
    if name is not None:
        return name == MESSAGES.name
    others = ("metadata.jsonl",)
    return any(f.name not in others for f in folder.glob("*.jsonl"))


def _choose_named(folder: Path, split: Split) -> tuple[list[Path], bool]:
    """Files or folders called train... and test..., in the folder or in its data/."""
    for place in (folder, folder / "data"):
        test, train = _called(place, "test"), _called(place, "train")
        if test and train:
            return (test if split == "test" else train), True
        if test and split == "test":
            return test, True
        if test and len(test) == len(_visible(place)):
            raise DataError(f"{folder}: holds a test set only; add a train set beside it")
    return [folder], False


def _called(folder: Path, name: str) -> list[Path]:
    return [p for p in _visible(folder) if re.fullmatch(rf"{name}([-_.].*)?", p.name)]


def _visible(folder: Path) -> list[Path]:
    entries: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in entries if not p.name.startswith("."))


def _train_file(folder: Path, suffix: str) -> Path | None:
    """train.jsonl, or the only .jsonl that is not test.jsonl; likewise of other suffixes."""
    train = folder / f"train{suffix}"
    if train.is_file():
        return train
    others = [file for file in folder.glob(f"*{suffix}") if file.stem != "test"]
    return others[0] if len(others) == 1 else None


def _divide(samples: Sequence[Sample], split: Split) -> list[Sample]:
    """The half of a set without a test file."""
    found = np.array([keys(sample) for sample in samples], np.uint64).reshape(-1, 2)
    held = held_out(found[:, 0], found[:, 1]).tolist()
    return [one for one, test in zip(samples, held, strict=True) if test == (split == "test")]
