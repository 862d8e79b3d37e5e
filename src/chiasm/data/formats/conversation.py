"""Turns whose pictures stand as <image> in the words: LLaVA, ShareGPT, LLaMA-Factory, ms-swift.

A line break beside a placeholder separates it from the words and is no part of them: "<image>\\nQ"
and "Q\\n<image>" are a picture and Q, so that all these spellings of a sample are encoded alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from chiasm.core.config import nearest
from chiasm.core.errors import DataError
from chiasm.core.sample import Part, Role, Sample, Text, Turn, Video
from chiasm.data.formats.messages import check_count, check_order
from chiasm.data.formats.reading import encodable, inside, picture, show

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
PLACEHOLDER = re.compile(r"<(image|video)>")

Said = tuple[str, Any, Any]
"""(name of the turn in the file, who speaks, the words)"""


def conversation(
    said: Sequence[Said],
    images: Sequence[Any],
    videos: Sequence[Any],
    root: Path,
    where: str,
    *,
    prepend: bool = False,
) -> tuple[Turn, ...]:
    """Turns with their placeholders filled in order.

    prepend: where no words hold a placeholder, the media go before the first user's words, as
    ms-swift reads it. Raises DataError for a wrong role, order, text or number of placeholders.
    """
    words = [(_role(role, name), encodable(text, name)) for name, role, text in said]
    if not words:
        raise DataError("no turns; give the conversation or remove the record")
    text = "".join(text for _, text in words)
    if prepend and not PLACEHOLDER.search(text):
        front = "<image>" * len(images) + "<video>" * len(videos)
        first = next((i for i, (role, _) in enumerate(words) if role == "user"), 0)
        words[first] = (words[first][0], front + words[first][1])
        text = front + text
    for kind, values in (("image", images), ("video", videos)):
        check_count(kind, text.count(f"<{kind}>"), len(values))
    media = {
        "image": iter([picture(v, f"images[{i}]", root, where) for i, v in enumerate(images)]),
        "video": iter(
            [Video(inside(v, f"videos[{i}]", root), where) for i, v in enumerate(videos)]
        ),
    }
    turns = tuple(Turn(cast(Role, role), _parts(text, media)) for role, text in words)
    check_order(turns)
    return turns


def _parts(text: str, media: dict) -> tuple[Part, ...]:
    pieces = PLACEHOLDER.split(text)  # words, kind, words, kind, ..., words
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(next(media[piece]))
            continue
        if i > 0:
            piece = piece.removeprefix("\n")
        if i < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece or len(pieces) == 1:
            parts.append(Text(piece))
    return tuple(parts)


def _role(role: Any, name: str) -> Role:
    if not isinstance(role, str) or role.lower() not in ROLES:
        hint = nearest(role, ROLES) or f"; use {', '.join(ROLES)}"
        raise DataError(f"{name} has the unknown role {show(role)}{hint}")
    return ROLES[role.lower()]


def media_list(row: dict, kind: str) -> list[Any]:
    """The pictures or clips of a record, under the plural or the singular name, one or many."""
    values = next((row[k] for k in (f"{kind}s", kind) if row.get(k) is not None), [])
    return list(values) if isinstance(values, (list, tuple)) else [values]


def with_meta(
    turns: tuple[Turn, ...], row: dict, used: set[str], name: str, source: str, where: str
) -> Sample:
    """A sample that keeps every other simple column of its record in meta."""
    rest = {
        key: value
        for key, value in row.items()
        if key not in used and isinstance(value, (str, int, float, bool, list))
        and not _has_bytes(value)
    }  # fmt: skip
    return Sample(turns, name, source, False, {**rest, "where": where})


def _has_bytes(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_bytes, value))
    return not isinstance(value, (str, int, float, bool, type(None)))
