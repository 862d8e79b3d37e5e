"""OpenAI messages as JSONL: one conversation a line, its pictures as files in the same folder.

    {"id": "7", "images": ["images/7.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which animal?"}]},
        {"role": "assistant", "content": "A cat."}], "independent": false, "meta": {}}

The n-th image part of a line stands for the n-th entry of its `images`, the n-th video part for
the n-th of `videos`. Paths are relative to the folder of the file and stay inside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from chiasm.core.config import nearest
from chiasm.core.errors import DataError, PlaceholderError
from chiasm.core.sample import ROLES, Image, Part, Sample, Text, Turn, Video
from chiasm.data.formats.media import Appearing, image_file, video_file
from chiasm.data.formats.reading import (
    OnError,
    encodable,
    folder_name,
    identity,
    inside,
    json_lines,
    picture,
    samples,
    show,
    typed,
)

TRAIN = "train.jsonl"
PART_TYPES = ("text", "image", "video")


def read_messages(
    path: Path, on_error: OnError | None = None, images: Path | None = None
) -> list[Sample]:
    """The conversations of a .jsonl file, or of a folder's train.jsonl or only .jsonl.

    Pictures are not opened; their paths are relative to `images`, or to the file's folder. meta
    gets "where" ("train.jsonl:17"); blank lines are skipped. Raises DataError for the first bad
    line, or gives each to on_error and reads on.
    """
    file = find_jsonl(path)
    source = folder_name(file)

    def make(row: dict, where: str) -> Sample:
        return sample_of(row, images or file.parent, source, where)

    return list(samples(json_lines(file), make, source, on_error))


def write_messages(written: Iterable[Sample], path: Path) -> None:
    """Write conversations so that read_messages gives them back; the file appears only whole.

    Files inside the folder of `path` are named where they are; other pictures are saved once, by
    content, under images/ (decoded ones as PNG), other clips under videos/.
    """
    with Appearing(path) as temporary, temporary.open("wb") as file:
        for sample in written:
            images = [image_file(image, path.parent) for image in sample.images]
            videos = [video_file(video, path.parent) for video in videos_of(sample)]
            file.write(json_line(sample, images, videos) + b"\n")


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


# Reading: the place of an error is put before its message by reading.samples.


def sample_of(row: dict, root: Path, source: str, where: str) -> Sample:
    """The conversation of one object; its paths are relative to `root`."""
    messages = _messages(row)
    media = {
        "image": _entries(row, "image", messages, lambda v, e: picture(v, e, root, where)),
        "video": _entries(row, "video", messages, lambda v, e: Video(inside(v, e, root), where)),
    }
    turns = tuple(
        Turn(m["role"], tuple(_part(part, media) for part in m["content"])) for m in messages
    )
    check_order(turns)
    independent = typed(row, "independent", bool, False)
    meta = {**typed(row, "meta", dict, {}), "where": where}
    return Sample(turns, identity(row), source, independent, meta)


def _messages(row: dict) -> list[dict]:
    """The messages, checked, with every content as a list of parts."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        found = "missing" if "messages" not in row else show(messages)
        raise DataError(f'"messages" is {found}; give the turns as a list or remove the line')
    return [
        {"role": _role(m, f"messages[{i}]"), "content": _content(m, f"messages[{i}]")}
        for i, m in enumerate(messages)
    ]


def _role(message: Any, name: str) -> str:
    if not isinstance(message, dict):
        raise DataError(f"{name} is {show(message)}; make it an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        hint = nearest(role, ROLES) or f"; use {', '.join(ROLES)}"
        raise DataError(f"{name} has the unknown role {show(role)}{hint}")
    return role


def _content(message: dict, name: str) -> list[dict]:
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{name}.content is {show(content)}; make it a string or a list of parts")
    for i, part in enumerate(content):
        _check_part(part, f"{name}.content[{i}]")
    return content


def _check_part(part: Any, name: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind not in PART_TYPES:
        hint = nearest(kind, PART_TYPES) or f"; use {', '.join(PART_TYPES)}"
        raise DataError(f"{name} has the unknown type {show(kind)}{hint}")
    if kind != "text":
        return
    encodable(part.get("text"), f"{name}.text")


def _entries(
    row: dict, kind: str, messages: list[dict], make: Callable[[Any, str], Part]
) -> Iterator[Part]:
    """The pictures or clips of a line, in order."""
    key = f"{kind}s"
    values = typed(row, key, list, [])
    parts = sum(part["type"] == kind for m in messages for part in m["content"])
    check_count(kind, parts, len(values))
    return iter([make(value, f"{key}[{i}]") for i, value in enumerate(values)])


def check_count(kind: str, parts: int, entries: int) -> None:
    """As many places for pictures in the words as there are pictures."""
    if parts != entries:
        raise PlaceholderError(
            f"{parts} {kind} part{'s' * (parts != 1)} but {entries} "
            f'{kind}{"s" * (entries != 1)} in "{kind}s"; make them equal'
        )


def _part(part: dict, media: dict[str, Iterator[Part]]) -> Part:
    return Text(part["text"]) if part["type"] == "text" else next(media[part["type"]])


def check_order(turns: tuple[Turn, ...]) -> None:
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


# Writing


def json_line(sample: Sample, images: list[str], videos: list[str]) -> bytes:
    """The sample as one line of JSON, its media under the given names. Raises DataError if its
    meta is not JSON."""
    row: dict[str, Any] = {
        "id": sample.id,
        "images": images,
        "videos": videos,
        "messages": [
            {"role": turn.role, "content": [_part_row(part) for part in turn.parts]}
            for turn in sample.turns
        ],
        "independent": sample.independent,
        "meta": own_meta(sample),
    }
    for key in ("videos", "independent", "meta"):
        if not row[key]:
            del row[key]
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{sample.where}: meta is not JSON: {error}; convert or drop it") from None
    # A lone surrogate cannot be UTF-8; as a backslash escape it is still the same JSON.
    return text.encode("utf-8", "backslashreplace")


def own_meta(sample: Sample) -> dict:
    """What the data set says about a sample, without the place it was read from."""
    return {key: value for key, value in sample.meta.items() if key != "where"}


def videos_of(sample: Sample) -> list[Video]:
    return [p for turn in sample.turns for p in turn.parts if isinstance(p, Video)]


def _part_row(part: Part) -> dict:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, Image) else "video"}
