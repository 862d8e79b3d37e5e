"""OpenAI chat messages in memory to a Sample: what the Python API and `Processor` are given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.media_value import image_of
from chiasm.data.formats.reading import Reading, show
from chiasm.data.formats.rows import sample_of

Messages = Sequence[Mapping[str, Any]]

_IMAGE_TYPES = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64")
_VIDEO_TYPES = ("video", "video_url")
_VIDEO_KEYS = ("video", "video_url", "url", "path")


def conversation_of(messages: Messages | Sample) -> Sample:
    """The sample of OpenAI messages; a Sample is returned as it is.

    Text is text, also where it spells "<image>". An image part holds a path, bytes, a PIL image or
    a data URL (`image_of`). Raises DataError for other values, keys that are not used, an unknown
    role and a wrong order of roles.
    """
    if isinstance(messages, Sample):
        return messages
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise DataError(
            f"messages are {show(messages)}; give a list of objects with role and content"
        )
    reading = Reading(images=Path("/"), strict=True)
    rows = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    sample = sample_of({"messages": rows}, Path.cwd(), "messages", "messages", reading)
    unused = [name for name in reading.unused if not name.startswith("(")]  # others are remarks
    if unused:
        raise DataError(f"messages: keys that are not used: {', '.join(unused)}; remove them")
    return sample


def _message(message: Any, entry: str) -> Any:
    """A message whose content is a list of parts with their media opened."""
    if not isinstance(message, Mapping):
        return message  # sample_of says what is wrong
    content = message.get("content")
    if isinstance(content, str):
        parts: Any = [{"type": "text", "text": content}]
    elif isinstance(content, (list, tuple)):
        parts = [_part(part, f"{entry}.content[{i}]") for i, part in enumerate(content)]
    else:
        return message
    return {**message, "content": parts}


def _part(part: Any, entry: str) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind in _IMAGE_TYPES:
        return _replaced(part, _IMAGE_KEYS, lambda value: image_of(value, entry))
    if kind in _VIDEO_TYPES:
        return _replaced(part, _VIDEO_KEYS, _whole_path)
    return part


def _replaced(part: Mapping[str, Any], keys: Sequence[str], make: Any) -> Mapping[str, Any]:
    """The part with make(value) for the value of the first of the keys that it has."""
    for key in keys:
        if part.get(key) is not None:
            return {**part, key: make(_inner(part[key], keys))}
    return part


def _inner(value: Any, keys: Sequence[str]) -> Any:
    """What {"url": ...} and the like hold; any other value itself."""
    if not isinstance(value, Mapping):
        return value
    return next((value[key] for key in keys if value.get(key) is not None), value)


def _whole_path(value: Any) -> Any:
    """A path with its folder, so that it may lead anywhere."""
    if isinstance(value, (str, os.PathLike)) and "://" not in str(value):
        return str(Path(value).expanduser().absolute())
    return value
