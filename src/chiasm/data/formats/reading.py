"""What all readers share: records with their places, and values checked before they are used."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Sample
from chiasm.data.formats.addresses import Addresses
from chiasm.data.formats.published import Finder, joined, joined_with

OnError = Callable[[str, DataError], None]
"""Given the place of a bad line ("tables-qa/train.jsonl:17") and what is wrong with it."""

Record = tuple[str, Any]
"""A place in a file ("train.jsonl:17") and what stands there, or the DataError found there."""


@dataclass
class Reading:
    """How records are read, and what was found in them that is not used.

    on_error: gets each bad record, which is left out; None raises the first. images: the folder
    that image paths are relative to (None: the record's file's own; the file system's root: that
    one too, and absolute paths are allowed). columns: what -> name of the column that holds it
    (normal.COLUMNS). strict: a key that is not used makes its record a bad one. unused: how many
    records have a key that is not used, by its name; names in brackets are other remarks.
    """

    on_error: OnError | None = None
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    unused: Counter[str] = field(default_factory=Counter)
    checked: bool = False
    finder: Finder = field(default_factory=Finder, compare=False, repr=False)
    _addresses: dict[Path, Addresses] = field(default_factory=dict, compare=False, repr=False)

    @property
    def anywhere(self) -> bool:
        """Absolute paths are allowed."""
        return self.images is not None and self.images == Path(self.images.anchor or "-")

    @property
    def how(self) -> str:
        """What of it decides how a record is read."""
        return f"{self.images} {sorted(self.columns.items())} {self.strict}"

    def check_columns(self, row: Mapping[str, Any]) -> None:
        """Raises ConfigError where the first record lacks a column of `columns`."""
        for column in () if self.checked else self.columns.values():
            if column not in row:
                raise ConfigError(f"--columns: no column '{column}'{nearest(column, row)}")
        self.checked = True

    def addresses(self, root: Path) -> Addresses:
        """The files of a folder or a tar by their URLs."""
        if root not in self._addresses:
            self._addresses[root] = Addresses(root)
        return self._addresses[root]

    def quiet(self) -> Reading:
        """The same with counts of its own: records that are read again are not counted again."""
        return replace(self, unused=Counter())

    def root(self, folder: Path) -> Path:
        """What relative image paths of a file in `folder` are relative to."""
        return folder if self.images is None or self.anywhere else self.images


@dataclass(frozen=True)
class Place:
    """Where a record stands: the folder its paths are relative to, its data set, file and line."""

    root: Path
    source: str
    where: str
    reading: Reading = field(default_factory=Reading)

    def file(self, name: Any, entry: str) -> Path:
        """The file that a record's value names. Raises DataError."""
        if type(name) is str and PLAIN.match(name) and self.reading.finder.beside(self.root):
            return self.root / name  # nearly all
        path = inside(name, entry, self.root, self.reading.anywhere)
        if self.reading.finder.beside(self.root) or ABSOLUTE.match(name):
            return path
        return self.reading.finder.file(self.root, name)

    def fetched(self, url: str) -> Image | None:
        """The image of a URL where its file was fetched before (addresses.py)."""
        found = self.reading.addresses(self.root).find(url)
        return None if found is None else Image(found, self.where)

    def first(self, names: Sequence[str], entry: str) -> Path | None:
        """The first of several files that is there. Raises DataError for a name out of the root."""
        for name in names:
            inside(name, entry, self.root)
        return self.reading.finder.first(self.root, names)


LISTS = ("data", "samples", "items", "records", "examples", "rows", "train", "questions",
         "annotations", "images")  # fmt: skip
"""Under which keys an object holds its records."""
LARGEST = 2 * 2**30  # bytes of a JSON file that is read whole
LONGEST = 64 * 2**20  # bytes of one record: more is a broken file, and would fill the memory
_CHUNK = 2**20
ABSOLUTE = re.compile(r"/|\\\\|[A-Za-z]:[/\\]")
"""How a path begins that is absolute here or on Windows."""
PLAIN = re.compile(r"[\w-][\w /-]*(\.[\w-]+)?\Z")
"""A relative path without anything that could lead out of a folder."""
_GAP = re.compile(r"[\s,]*")


def samples(
    records: Iterable[Record],
    make: Callable[[Any, str], Sample],
    source: str,
    on_error: OnError | None,
) -> Iterator[Sample]:
    """make(record, where) of every record. Raises DataError for the first that fails, naming
    source/where, or gives each to on_error and goes on."""
    for where, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            sample = make(record, where)
        except DataError as error:
            located = type(error)(f"{source}/{where}: {error}")
            if on_error is None:
                raise located from None
            on_error(f"{source}/{where}", located)
        else:
            yield sample


def folder_name(path: Path) -> str:
    """The folder a file stands in, or a folder's own name: the source of its samples."""
    whole = Path(os.path.abspath(path))
    return whole.name if path.is_dir() else whole.parent.name


def records_of(file: Path) -> Iterator[Record]:
    """The records of a JSON file, with their answers where those stand in a file beside it."""
    found = joined_with(file)
    if found is None:
        return json_records(file)
    join, questions, answers = found
    return joined(join, json_records(questions), _object(answers, ("annotations", "data")))


def json_records(file: Path) -> Iterator[Record]:
    """The objects of a JSON array or of JSON lines, one at a time: memory holds one record."""
    with file.open("rb") as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return json_lines(file) if _is_conversation_lines(file) else _array(file)
    return _object(file) if file.suffix == ".json" else json_lines(file)


def _object(file: Path, lists: Sequence[str] = ()) -> Iterator[Record]:
    """The records of one JSON object: of the list under one of `lists` (LISTS), or its values with
    their keys as ids (ScienceQA, GQA). Many objects are lines."""
    if not _is_one_object(file):
        yield from _array(file) if lists else json_lines(file)
        return
    whole = json.loads(file.read_bytes())
    if not lists and not {"images", "annotations"} <= whole.keys():  # COCO's need each other
        lists = LISTS
    for key in lists:
        if isinstance(whole.get(key), list):
            for i, row in enumerate(whole[key]):
                yield f"{file.name}:{key}[{i}]", {"messages": row} if is_conversation(row) else row
            return
    if whole and all(isinstance(row, dict) for row in whole.values()):
        for name, row in whole.items():
            yield f"{file.name}:{name}", row if "id" in row else {"id": name, **row}
        return
    yield f"{file.name}:1", whole


def _is_conversation_lines(file: Path) -> bool:
    """Whether each line is the list of a conversation's messages."""
    with file.open("rb") as stream:
        first = next((line for _, _, line in lines(stream)), b"")
    try:
        return "messages" in json_line_object(first)
    except DataError:
        return False


def _is_one_object(file: Path) -> bool:
    """Whether the file is one object of at most LARGEST bytes, and not many in lines."""
    with file.open("rb") as stream:
        first = next((line for _, _, line in lines(stream)), b"")
        second = stream.read(_CHUNK).strip()
    try:
        json_line_object(first)
    except DataError:
        if file.stat().st_size > LARGEST:
            return False
    else:
        if second:
            return False
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(file: Path) -> Iterator[Record]:
    """One object a line; blank lines are skipped."""
    with file.open("rb") as stream:
        for number, _, line in lines(stream):
            where = f"{file.name}:{number}"
            try:
                yield where, json_line_object(line)
            except DataError as error:
                yield where, error


def lines(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes | DataError]]:
    """(number from 1, byte where it begins, the line with its end) of every line that is not blank;
    a DataError for one that is longer than LONGEST, which is passed over in pieces."""
    number = start = 0
    while line := stream.readline(LONGEST):
        number, length = number + 1, len(line)
        if length == LONGEST and not line.endswith(b"\n"):
            while rest := stream.readline(_CHUNK):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield (
                number,
                start,
                DataError(f"a line of more than {LONGEST:,} bytes; save images as files beside it"),
            )
        elif line.strip():
            yield number, start, line
        start += length


def json_line_object(line: bytes | DataError) -> dict:
    """The object that one of `lines` spells. Raises DataError."""
    if isinstance(line, DataError):
        raise line
    return json_object(line.strip().removeprefix(codecs.BOM_UTF8))


def table_rows(file: Path, delimiter: str = ",") -> Iterator[Record]:
    """The rows of a CSV or TSV file as objects of what their cells hold."""
    # The limit is the module's, and 128 KiB is too small for an image.
    before = csv.field_size_limit(LONGEST)
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = csv.DictReader(stream, delimiter=delimiter)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield f"{file.name}:{rows.line_num}", DataError(f"{error}; correct the row")
                    continue
                yield f"{file.name}:{rows.line_num}", {k: v or None for k, v in row.items() if k}
    finally:
        csv.field_size_limit(before)


def json_object(line: bytes) -> dict:
    """The object a line spells. Raises DataError saying what it is instead."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"not UTF-8: byte 0x{byte:02x} at column {error.start + 1}; save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error.msg} at column {error.colno}; correct or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise DataError(f"not usable JSON: {error}; correct or remove the line") from None
    if is_conversation(row):
        return {"messages": row}
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, found {show(row)}; one object a line")
    return row


def is_conversation(row: Any) -> bool:
    """A record that is the list of its messages."""
    return isinstance(row, list) and bool(row) and all(
        isinstance(one, dict) and ("role" in one or "from" in one) for one in row
    )  # fmt: skip


def _array(file: Path) -> Iterator[Record]:
    """The objects of one JSON array, decoded as they are read."""
    decode = json.JSONDecoder().raw_decode
    number = 0
    # Bytes that are no UTF-8 become lone surrogates, found again in the record that holds them.
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        text, at = stream.read(_CHUNK), 0
        at = text.index("[") + 1
        while True:
            found = _GAP.match(text, at)
            at = found.end() if found else at
            if text.startswith("]", at):
                return
            where = f"{file.name}[{number}]"
            try:
                row, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                rest = len(text) - at
                more = stream.read(max(_CHUNK, rest)) if rest < LONGEST else ""
                if not more:  # nothing tells where the next record begins
                    yield where, DataError(f"not JSON from here on: {error}; correct the file")
                    return
                text, at = text[at:] + more, 0
                continue
            if is_conversation(row):
                row = {"messages": row}
            if not isinstance(row, dict):
                yield where, DataError(f"expected a JSON object, found {show(row)}")
            elif any("\udc80" <= c <= "\udcff" for c in text[at:end]):
                yield where, DataError("not UTF-8; save the file as UTF-8")
            else:
                yield where, row
            number, at = number + 1, end


def inside(name: Any, entry: str, root: Path, anywhere: bool = False) -> Path:
    """The file of a path inside `root`; with `anywhere` also of any absolute path. Raises DataError
    for the others: data sets are moved and shared."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{entry} is {show(name)}; make it a path relative to the file's folder")
    if ABSOLUTE.match(name):
        if anywhere or Path(os.path.normpath(name)).is_relative_to(os.path.abspath(root)):
            return Path(name)
        raise DataError(
            f"{entry} is an absolute path, '{shortened(name)}', and the data set would break when "
            "it is moved; allow it with --images /, name the images' folder with --images FOLDER, "
            "or make the path relative"
        )
    if os.pardir in name and os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise DataError(
            f"{entry} is a path out of the file's folder, '{shortened(name)}', and the data set "
            "would break when it is moved; name the images' folder with --images FOLDER or store "
            "the image inside the folder"
        )
    return root / name


def typed(row: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """row[key] of a kind, the default where it is absent or null. Raises DataError otherwise."""
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        wanted = {bool: "true or false", dict: "an object", list: "a list", str: "a string"}[kind]
        raise DataError(f'"{key}" is {show(value)}; make it {wanted}')
    return value


def identity(row: Mapping[str, Any], *keys: str) -> str:
    """The record's id as a string, from the first of the keys that it has."""
    name = next((row[key] for key in keys or ("id",) if row.get(key) is not None), None)
    if isinstance(name, bool) or not isinstance(name, (str, int, type(None))):
        raise DataError(f'"id" is {show(name)}; make it a string')
    return "" if name is None else str(name)


def encodable(text: Any, name: str) -> str:
    """The text, or DataError when it is none, or none that a tokenizer takes."""
    if not isinstance(text, str):
        raise DataError(f"{name} is {show(text)}; make it a string or remove the part")
    try:
        text.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a surrogate pair; correct its \\u") from None
    return text


def show(value: Any) -> str:
    """A value for an error: as JSON, shortened."""
    return shortened(json.dumps(value, default=lambda other: f"<{type(other).__name__}>"))


def shortened(text: str, most: int = 40) -> str:
    """At most so many characters, the rest as three dots: a value may be a whole image."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
