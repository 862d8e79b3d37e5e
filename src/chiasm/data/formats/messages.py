"""OpenAI messages as JSONL: one conversation a line, its pictures as files in the same folder.

    {"id": "7", "images": ["images/7.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which animal?"}]},
        {"role": "assistant", "content": "A cat."}], "independent": false, "meta": {}}

The n-th image part of a line stands for the n-th entry of its `images`, the n-th video part for
the n-th of `videos`. Paths are relative to the folder of the file and stay inside it.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import PIL.Image

from chiasm.core.config import nearest
from chiasm.core.errors import DataError
from chiasm.core.sample import ROLES, Image, Part, Sample, Text, Turn, Video

TRAIN = "train.jsonl"
PART_TYPES = ("text", "image", "video")

OnError = Callable[[str, DataError], None]
"""Given the place of a bad line ("tables-qa/train.jsonl:17") and what is wrong with it."""


def read_messages(path: Path, on_error: OnError | None = None) -> list[Sample]:
    """The conversations of a .jsonl file, or of a folder's train.jsonl or only .jsonl.

    Pictures are not opened. meta gets "where" ("train.jsonl:17"); blank lines are skipped. Raises
    DataError for the first bad line, or gives each to on_error and reads on.
    """
    file = find_jsonl(path)
    folder = Path(os.path.abspath(file)).parent.name
    samples = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip()
            if not line:
                continue
            try:
                where = f"{file.name}:{number}"
                samples.append(_sample(_object(line), file.parent, folder, where))
            except DataError as error:
                located = DataError(f"{folder}/{where}: {error}")
                if on_error is None:
                    raise located from None
                on_error(f"{folder}/{where}", located)
    return samples


def write_messages(samples: Iterable[Sample], path: Path) -> None:
    """Write conversations so that read_messages gives them back; the file appears only whole.

    Files inside the folder of `path` are named where they are; other pictures are saved once, by
    content, under images/ (decoded ones as PNG), other clips under videos/.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Appearing(path) as temporary, temporary.open("wb") as file:
        for sample in samples:
            # A lone surrogate cannot be UTF-8; as a backslash escape it is still the same JSON.
            file.write(_line(sample, path.parent).encode("utf-8", "backslashreplace") + b"\n")


def find_jsonl(path: Path) -> Path:
    """The file a path means: itself, or in a folder train.jsonl or the only .jsonl."""
    if not path.exists():
        raise missing(path)
    if path.is_file():
        if path.suffix != ".jsonl":
            raise DataError(f"{path}: not a .jsonl file; give a .jsonl file or the folder of one")
        return path
    if (path / TRAIN).is_file():
        return path / TRAIN
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = f"no {TRAIN} but {', '.join(f.name for f in found)}" if found else "no .jsonl file"
        raise DataError(f"{path}: holds {names}; name one .jsonl file")
    return found[0]


def missing(path: Path, others: tuple[str, ...] = ()) -> DataError:
    """The error for a path that does not exist, naming what stands there with the nearest name."""
    part = path
    while not part.parent.is_dir() and part != part.parent:
        part = part.parent
    names = [*others, *(p.name for p in part.parent.iterdir())]
    remedy = nearest(part.name, names) or "; give a .jsonl file or the folder of one"
    return DataError(f"{path}: no such file or folder{remedy}")


# Reading: the place of an error is put before its message by read_messages.


def _object(line: bytes) -> dict:
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
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, found {_show(row)}; one object a line")
    return row


def _sample(row: dict, root: Path, source: str, where: str) -> Sample:
    messages = _messages(row)
    entries = {kind: _entries(row, kind, messages, root) for kind in ("image", "video")}
    turns = tuple(
        Turn(m["role"], tuple(_part(part, entries, where) for part in m["content"]))
        for m in messages
    )
    _check_order(turns)
    name = row.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int, type(None))):
        raise DataError(f'"id" is {_show(name)}; make it a string')
    independent = _typed(row, "independent", bool, False)
    meta = {**_typed(row, "meta", dict, {}), "where": where}
    return Sample(turns, "" if name is None else str(name), source, independent, meta)


def _messages(row: dict) -> list[dict]:
    """The messages, checked, with every content as a list of parts."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        found = "missing" if "messages" not in row else _show(messages)
        raise DataError(f'"messages" is {found}; give the turns as a list or remove the line')
    return [
        {"role": _role(m, f"messages[{i}]"), "content": _content(m, f"messages[{i}]")}
        for i, m in enumerate(messages)
    ]


def _role(message: Any, name: str) -> str:
    if not isinstance(message, dict):
        raise DataError(f"{name} is {_show(message)}; make it an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        hint = nearest(role, ROLES) or f"; use {', '.join(ROLES)}"
        raise DataError(f"{name} has the unknown role {_show(role)}{hint}")
    return role


def _content(message: dict, name: str) -> list[dict]:
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{name}.content is {_show(content)}; make it a string or a list of parts")
    for i, part in enumerate(content):
        _check_part(part, f"{name}.content[{i}]")
    return content


def _check_part(part: Any, name: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind not in PART_TYPES:
        hint = nearest(kind, PART_TYPES) or f"; use {', '.join(PART_TYPES)}"
        raise DataError(f"{name} has the unknown type {_show(kind)}{hint}")
    if kind != "text":
        return
    text = part.get("text")
    if not isinstance(text, str):
        raise DataError(f"{name}.text is {_show(text)}; make it a string or remove the part")
    try:
        text.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
        raise DataError(f"{name}.text holds half a surrogate pair; correct its \\u") from None


def _entries(row: dict, kind: str, messages: list[dict], root: Path) -> Iterator[Path]:
    """The files of all image or video parts of a line, in order."""
    key = f"{kind}s"
    names = _typed(row, key, list, [])
    parts = sum(part["type"] == kind for m in messages for part in m["content"])
    if parts != len(names):
        raise DataError(
            f"{parts} {kind} part{'s' * (parts != 1)} but {len(names)} "
            f'{kind}{"s" * (len(names) != 1)} in "{key}"; make them equal'
        )
    return iter([_inside(name, f"{key}[{i}]", root) for i, name in enumerate(names)])


def _inside(name: Any, entry: str, root: Path) -> Path:
    """The file of a relative path. Refuses the others: data sets are moved and shared."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{entry} is {_show(name)}; make it a path relative to the file's folder")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        found = "an absolute path"
    elif os.path.normpath(name).split(os.sep)[0] == os.pardir:
        found = "a path out of the file's folder"
    else:
        return root / name
    raise DataError(
        f"{entry} is {found}, '{name}', and the data set would break when it is moved; "
        "put the file inside the folder"
    )


def _part(part: dict, entries: dict[str, Iterator[Path]], where: str) -> Part:
    if part["type"] == "text":
        return Text(part["text"])
    path = next(entries[part["type"]])
    return Image(path, where) if part["type"] == "image" else Video(path, where)


def _check_order(turns: tuple[Turn, ...]) -> None:
    """Users and assistants take turns, the user first; system turns may stand anywhere."""
    spoken = [(i, turn.role) for i, turn in enumerate(turns) if turn.role != "system"]
    if not any(role == "user" for _, role in spoken):
        raise DataError("no user turn; add the question or remove the line")
    if spoken[0][1] == "assistant":
        raise DataError("the assistant speaks before the user; put the question first")
    for (i, role), (j, following) in pairwise(spoken):
        if role == following:
            raise DataError(
                f"messages[{i}] and messages[{j}] are both the {role}'s; "
                "join them or add what was said between"
            )


def _typed(row: dict, key: str, kind: type, default: Any) -> Any:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        wanted = {bool: "true or false", dict: "an object", list: "a list"}[kind]
        raise DataError(f'"{key}" is {_show(value)}; make it {wanted}')
    return value


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# Writing


def _line(sample: Sample, root: Path) -> str:
    videos = [p for turn in sample.turns for p in turn.parts if isinstance(p, Video)]
    row: dict[str, Any] = {
        "id": sample.id,
        "images": [_image_file(image, root) for image in sample.images],
        "videos": [_video_file(video, root) for video in videos],
        "messages": [
            {"role": turn.role, "content": [_part_row(part) for part in turn.parts]}
            for turn in sample.turns
        ],
        "independent": sample.independent,
        "meta": {key: value for key, value in sample.meta.items() if key != "where"},
    }
    for key in ("videos", "independent", "meta"):
        if not row[key]:
            del row[key]
    try:
        return json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{sample.where}: meta is not JSON: {error}; convert or drop it") from None


def _part_row(part: Part) -> dict:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, Image) else "video"}


def _relative(path: Path, root: Path) -> str | None:
    """The path from a folder to what is inside it, else None."""
    inner, outer = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return inner.relative_to(outer).as_posix() if inner.is_relative_to(outer) else None


def _image_file(image: Image, root: Path) -> str:
    source = image.source
    if isinstance(source, Path) and (name := _relative(source, root)):
        return name
    name = f"images/{image.digest()[:32]}{_suffix(image)}"
    if not (root / name).exists():
        (root / "images").mkdir(exist_ok=True)
        with _Appearing(root / name) as temporary:
            if isinstance(source, PIL.Image.Image):
                image.load().save(temporary, "PNG")
            else:
                temporary.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    return name


def _suffix(image: Image) -> str:
    if isinstance(image.source, Path):
        return image.source.suffix.lower()
    if isinstance(image.source, PIL.Image.Image):
        return ".png"
    try:
        with PIL.Image.open(io.BytesIO(image.source)) as picture:
            return f".{(picture.format or 'image').lower()}"
    except OSError:
        image.load()  # raises with the place and the remedy
        raise


def _video_file(video: Video, root: Path) -> str:
    if name := _relative(video.path, root):
        return name
    if not video.path.is_file():
        place = f" ({video.where})" if video.where else ""
        raise DataError(
            f"{video.path}: no such video{place}; correct the path or remove the sample"
        )
    with video.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"videos/{digest[:32]}{video.path.suffix.lower()}"
    if not (root / name).exists():
        (root / "videos").mkdir(exist_ok=True)
        with _Appearing(root / name) as temporary:
            shutil.copyfile(video.path, temporary)
    return name


class _Appearing:
    """A file that appears whole or not at all: written beside its place, then moved there."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
