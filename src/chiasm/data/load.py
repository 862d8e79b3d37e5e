"""A data set by its name, folder or file, in two halves that never share a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chiasm.core.errors import DataError
from chiasm.core.registry import REFERENCE
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa, splits
from chiasm.data.blob import Blob, blobs, is_url, local
from chiasm.data.formats import huggingface, image_folder
from chiasm.data.formats.format import SIDE_FILES, Look, files_of
from chiasm.data.formats.json_rows import MESSAGES
from chiasm.data.formats.llama_factory import declared
from chiasm.data.formats.messages import find_jsonl, missing
from chiasm.data.formats.published import is_answers
from chiasm.data.formats.reading import OnError, Reading
from chiasm.data.formats.registry import NAMES, ImageDatasetFormat, by_name, detect
from chiasm.data.halves import held_out, keys
from chiasm.data.indexed import open_indexed
from chiasm.data.splits import split_of

Split = Literal["train", "test"]
Say = Callable[[str], object]

TEST = "test.jsonl"
SPLITS = ("train", "validation", "test")
HELD_OUT = ("test", "validation")
"""What the test half is, the first that there is."""
SUFFIXES = (".jsonl", ".json", ".parquet", ".tar", ".csv", ".tsv")
JSON_ROWS = ("messages", "llava", "sharegpt", "llama-factory", "swift", "table")
LARGE = 64 * 2**20  # bytes of JSON lines: more are not held in memory
BUILT_IN = ("easy-vqa",)


def load_samples(
    data: str,
    split: Split,
    on_error: OnError | None = None,
    say: Say | None = None,
    reading: Reading | None = None,
) -> Sequence[Sample]:
    """One half of a data set: "easy-vqa", "hf:ORG/NAME", a file or folder in a known format,
    after "FORMAT:" where it does not show, or a URL of .tar or .jsonl files. Tars, JSON lines of
    more than LARGE bytes and URLs stay where they are (data/indexed.py).

    The test half is the split called test, else the one called validation; where there is neither,
    a tenth of the samples, and the rest is for training (data/halves.py). Raises DataError when
    the path does not exist or the half is empty; on_error is for the bad records, as in
    read_messages, or `reading` says all of how records are read; `say` gets the line that confirms
    the format and one for what is not used.
    """
    reading = reading or Reading(on_error)
    if data in BUILT_IN:
        return easy_vqa.load(split)
    if is_url(data):
        half, title = _at_url(data, split, reading)
        if say is not None:
            say(detected(title, len(half), split))
        return half
    unused: Sequence[str] = ()
    if data.startswith(huggingface.PREFIX):
        rows, whole = huggingface.stream(data, split, reading)
        samples, place, title = list(rows), data, huggingface.FORMAT.title
    else:
        name, path = prefixed(data)
        if not path.exists():
            raise missing(path, BUILT_IN)
        choice = choose(path, split, name)
        whole, unused = choice.whole, choice.unused
        source = open_source(choice.places, name, reading)
        place, title = str(choice.places[0]), source.format.title
        if found := _large(choice.places, source.format):
            indexed = open_indexed(found, reading)
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
        if unused:
            say(f"not used: {', '.join(unused)}")
    return half


def _large(places: Sequence[Path], format: ImageDatasetFormat) -> list[Blob]:
    """The files that are read by an index; none where the samples are held in memory."""
    if format.name == "webdataset":
        return [local(file) for place in places for file in files_of(place, "*.tar")]
    if format.name not in JSON_ROWS:
        return []
    files = [Look(place).file or place for place in places]
    if any(file.suffix != ".jsonl" or declared(file) for file in files):
        return []
    large = sum(file.stat().st_size for file in files) > LARGE
    return [local(file) for file in files] if large else []


def _at_url(url: str, split: Split, reading: Reading) -> tuple[Sequence[Sample], str]:
    """One half of the files at a URL, and the title of their format: those called train... and
    test... (or validation...), or all of them divided by id."""
    found = blobs(url)
    named = {name: [b for b in found if split_of(_stem(b.name)) == name] for name in SPLITS}
    title = "WebDataset" if found[0].name.endswith(".tar") else MESSAGES.title
    held = named["test"] or named["validation"]
    if named["train"] and held:
        chosen = held if split == "test" else named["train"]
        half: Sequence[Sample] = open_indexed(chosen, reading)
    else:
        half = open_indexed(found, reading).half(split == "test")
    if not half:
        raise DataError(f"{url}: no usable sample is left for the {split} split; add samples")
    return half, f"{title} at a URL"


def _stem(name: str) -> str:
    name = name.rpartition("/")[2]
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


@dataclass(frozen=True)
class Source:
    """Samples as they are read, and the format they are in."""

    format: ImageDatasetFormat
    samples: Iterator[Sample]


def open_source(
    places: Sequence[Path], name: str | None = None, reading: Reading | None = None
) -> Source:
    """All samples of files or folders in one format, found by looking unless it is named."""
    for place in places:
        if not place.exists():
            raise missing(place)
    how = reading or Reading()
    format = by_name(name) if name else detect(places[0], how.columns)

    def read() -> Iterator[Sample]:
        for place in places:
            yield from format.read(place, how)

    return Source(format, read())


def open_data(
    data: str,
    name: str | None = None,
    on_error: OnError | None = None,
    images: Path | None = None,
    reading: Reading | None = None,
) -> dict[str, Source]:
    """All samples of a path or an hf: name by split, as far as it has splits of its own; a file or
    a folder without a split is "train"."""
    reading = reading or Reading(on_error, images)
    if is_url(data):
        found = blobs(data)
        kind = by_name("webdataset" if found[0].name.endswith(".tar") else MESSAGES.name)
        return {"train": Source(kind, iter(open_indexed(found, reading)))}
    if data in BUILT_IN:
        raise DataError(f"{data} is built in and needs no import; give a file or a folder")
    if data.startswith(huggingface.PREFIX):
        streams = {s: huggingface.stream(data, s, reading) for s in ("train", "test")}
        used = ("train", "test") if streams["test"][1] else ("train",)
        return {s: Source(huggingface.FORMAT, streams[s][0]) for s in used}
    given, path = prefixed(data)
    name = name or given
    if not path.exists():
        raise missing(path, BUILT_IN)
    if path.is_file():
        split = split_of(_stem(path.name)) or "train"
        return {split: open_source([path], name, reading)}
    found = by_split(path, name)
    return {s: open_source(places, name, reading) for s, places in found.items()}


def detected(title: str, count: int, split: str = "") -> str:
    """The line that confirms a format."""
    samples = f"{count:,} sample{'s' * (count != 1)}"
    return f"detected: {title}, {samples}{f' ({split})' if split else ''}"


def prefixed(data: str) -> tuple[str | None, Path]:
    """FORMAT:PATH as its halves; a path alone has no format."""
    name, colon, rest = data.partition(":")
    own = REFERENCE.match(data)
    if own and name not in NAMES and data[own.end() : own.end() + 1] == ":":
        name, rest = own[0], data[own.end() + 1 :]  # module:Class:PATH
        return name, Path(rest).expanduser()
    if colon and name in NAMES and not Path(data).exists():
        return name, Path(rest).expanduser()
    return None, Path(data).expanduser()


@dataclass(frozen=True)
class Choice:
    """What to read of a path for a split; whole: all of it belongs to the split, else it is still
    to be divided; unused: what else stands there and belongs to neither."""

    places: Sequence[Path]
    whole: bool
    unused: Sequence[str] = ()


def choose(path: Path, split: Split, name: str | None = None) -> Choice:
    """The files of a split. Raises DataError where a test set would be trained on."""
    if path.is_file():
        return _choose_beside(path, split)
    found = by_split(path, name)
    held = next((found[s] for s in HELD_OUT if s in found), None)
    if "train" not in found:
        if split == "train":
            name = next(iter(_others(found, [])), TEST)
            raise DataError(
                f"{path / name}: a test set is not trained on; add a train set beside it"
            )
        assert held is not None
        return Choice(held, True, _others(found, held))
    if held is None:
        return Choice(found["train"], False)
    chosen = held if split == "test" else found["train"]
    return Choice(chosen, True, _others(found, [*held, *found["train"]]))


def _others(found: Mapping[str, Sequence[Path]], used: Sequence[Path]) -> list[str]:
    return [place.name for places in found.values() for place in places if place not in used]


def _choose_beside(file: Path, split: Split) -> Choice:
    """A file, and the one beside it that differs in the name of the split alone."""
    own = split_of(_stem(file.name))
    if own in HELD_OUT:
        if split == "train":
            raise DataError(
                f"{file}: a {own} set is not trained on; add train{file.suffix} beside it"
            )
        return Choice([file], True)
    for held in HELD_OUT:
        for other in sorted(file.parent.glob(f"*{file.suffix}")):
            alone = own is None and _stem(other.name) == held and _only_other(file, other)
            if alone or (own == "train" and split_of(_stem(other.name)) == held
                         and _rest(other) == _rest(file)):  # fmt: skip
                return Choice([other if split == "test" else file], True)
    return Choice([file], False)


def _only_other(file: Path, test: Path) -> bool:
    """own.jsonl and test.jsonl alone in a folder."""
    return {*_data_files(file.parent, file.suffix)} == {file, test}


def _rest(file: Path) -> list[str]:
    """The words of a file's name that name no split."""
    return [word for word in re.split(r"[-_.]+", file.name) if split_of(word) is None]


def by_split(folder: Path, name: str | None = None) -> dict[str, list[Path]]:
    """The files or folders of each split, in the folder or in its data/; all of it as "train" where
    no name says more."""
    for place in (folder, folder / "data", *_only_config(folder, name)):
        found: dict[str, list[Path]] = {}
        for entry in _entries(place, name):
            if split := split_of(_stem(entry.name)):
                found.setdefault(split, []).append(entry)
        if found and ("train" in found or not _without_split(place, name)):
            return found
        if rest := _without_split(place, name) if found else None:
            # own.jsonl beside test.jsonl: the only other file is for training.
            if len(rest) == 1:
                return {"train": rest, **found}
            raise DataError(
                f"{place}: holds {', '.join(p.name for p in rest[:5])} beside a split's files; "
                "call the one to train on train"
            )
    return {"train": [folder if (name or not _messages_only(folder)) else find_jsonl(folder)]}


def _only_config(folder: Path, name: str | None) -> list[Path]:
    """The one folder below that holds data where the folder itself holds none, as of a data set of
    the hub with configurations. Raises DataError where there are several."""
    if _entries(folder, name) or _entries(folder / "data", name) or name is not None:
        return []
    places = [folder, folder / "data"]
    below = [p for place in places if place.is_dir() for p in sorted(place.iterdir())
             if p.is_dir() and _splits_of(p)]  # fmt: skip
    if len(below) > 1:
        raise DataError(
            f"{folder}: holds the configurations {', '.join(p.name for p in below)}; name one, as "
            f"{below[0]}"
        )
    return below


def _splits_of(folder: Path) -> list[Path]:
    return [p for p in _entries(folder, None) if p.is_file() and split_of(_stem(p.name))]


def _messages_only(folder: Path) -> bool:
    return bool(_data_files(folder, ".jsonl")) and not (folder / "metadata.jsonl").exists()


def _entries(folder: Path, name: str | None) -> list[Path]:
    """What in a folder can be a split: data files, and folders called as one."""
    if not folder.is_dir():
        return []
    if name != "image-folder" and any((folder / side).is_file() for side in image_folder.NAMES):
        return []
    found = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    files = [p for p in found if _is_data(p)]
    if files:  # train/ beside train.json holds its images.
        return files
    folders = [p for p in found if p.is_dir() and p.name in splits.NAMES and any(p.iterdir())]
    # train/ with several files of records (ChartQA's two kinds of questions) is all of them.
    several = [[f for f in sorted(p.iterdir()) if _is_data(f) and f.suffix in (".json", ".jsonl")]
               for p in folders]  # fmt: skip
    if any(len(inner) > 1 for inner in several):
        return [file for inner in several for file in inner]
    return folders


def _is_data(path: Path) -> bool:
    """A file of records, and not only of answers to another one's questions."""
    known = path.suffix in SUFFIXES and path.name not in SIDE_FILES
    return known and path.is_file() and not is_answers(path)


def _without_split(folder: Path, name: str | None) -> list[Path]:
    return [p for p in _entries(folder, name) if p.is_file() and not split_of(_stem(p.name))]


def _data_files(folder: Path, suffix: str) -> list[Path]:
    return [p for p in sorted(folder.glob(f"*{suffix}")) if p.name not in SIDE_FILES]


def _divide(samples: Sequence[Sample], split: Split) -> list[Sample]:
    """The half of a set without a test file."""
    named = [split_of(str(sample.meta.get("split", ""))) for sample in samples]
    held = next((name for name in HELD_OUT if name in named), None)
    if held and "train" in named:  # the records say it themselves, as Karpathy's do
        wanted = held if split == "test" else "train"
        return [one for one, name in zip(samples, named, strict=True) if name == wanted]
    found = np.array([keys(sample) for sample in samples], np.uint64).reshape(-1, 2)
    held = held_out(found[:, 0], found[:, 1]).tolist()
    return [one for one, test in zip(samples, held, strict=True) if test == (split == "test")]
