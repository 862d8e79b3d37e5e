"""Images and videos as records hold them: a path, bytes, a struct of both, a decoded image, base64,
a data URL."""

from __future__ import annotations

import ast
import base64
import binascii
import json
import os
import re
from pathlib import Path
from typing import Any

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Video
from chiasm.data.formats.media import SUFFIXES
from chiasm.data.formats.reading import Place, shortened, show

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv")
LONGEST_PATH = 64  # characters: longer text without a dot is base64
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"(https?|ftp|s3|gs)://")
_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGODlh", "R0lGODdh", "UklGR")


def image_of(value: Any, entry: str = "image") -> Image:
    """The image that a caller gives: a path, encoded bytes, a PIL image, a data URL or an Image.

    A string is a path or a data URL, never words. Raises DataError for anything else, and for a
    path where no file is.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, (bytes, PIL.Image.Image)):
        return Image(value, entry)
    if isinstance(value, str) and (head := _DATA_URL.match(value)):
        return Image(_decoded(value[head.end() :], entry), entry)
    if not isinstance(value, (str, os.PathLike)):
        raise DataError(
            f"{entry} is a {type(value).__name__}; give a path, bytes, a PIL image or a data URL"
        )
    if isinstance(value, str):
        _refuse_url(value, entry)
        value = value.removeprefix("file://")
    path = Path(value).expanduser()
    if not _is_file(path):
        raise DataError(
            f"{entry}: there is no file '{shortened(str(value), 80)}'; give a path, bytes, a PIL "
            "image or a data URL (in ask, None for text alone)"
        )
    return Image(path, entry)


def to_image(value: Any, entry: str, place: Place) -> Image:
    """The image of a record's value. Raises DataError naming the entry for anything else."""
    if type(value) is str and "." in value and ":" not in value:  # nearly all
        return Image(place.file(value, entry), place.where)
    if isinstance(value, Image):
        return value
    if isinstance(value, dict):
        found = next((value[k] for k in ("bytes", "path", "url", "base64") if value.get(k)), None)
        if found is None:
            raise DataError(f"{entry} is {show(value)}; make it a path, bytes or an image")
        return to_image(found, entry, place)
    if isinstance(value, (bytes, PIL.Image.Image)):
        return Image(value, place.where)
    if not isinstance(value, str):
        return Image(place.file(value, entry), place.where)
    if head := _DATA_URL.match(value):
        return Image(_decoded(value[head.end() :], entry), place.where)
    if is_address(value) and (found := place.fetched(value)):
        return found
    _refuse_url(value, entry)
    if "." not in value and len(value) > LONGEST_PATH:
        return Image(_decoded(value, entry), place.where)
    return Image(place.file(value.removeprefix("file://"), entry), place.where)


def to_video(value: Any, entry: str, place: Place) -> Video:
    """The video of a record's value, which is a path. Raises DataError for anything else."""
    if isinstance(value, Video):
        return value
    if isinstance(value, dict):
        value = next((value[key] for key in ("path", "url", "video") if value.get(key)), value)
    if isinstance(value, str):
        _refuse_url(value, entry)
        value = value.removeprefix("file://")
    return Video(place.file(value, entry), place.where)


def is_image(value: Any) -> bool:
    """Whether a value of a column of any name is an image, or a list of images."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_image, value))
    if isinstance(value, dict):
        if not value.keys() <= {"bytes", "path"} or not any(value.values()):
            return False
        path = value.get("path")
        return not isinstance(path, str) or _suffix(path) in ("", *SUFFIXES)
    if isinstance(value, bytes):
        return value.startswith(_HEADS) or value[8:12] == b"WEBP" or value[4:12] == b"ftypavif"
    if not isinstance(value, str):
        return isinstance(value, PIL.Image.Image)
    if value.startswith("data:image/"):
        return True
    if "." not in value and len(value) > LONGEST_PATH:
        return value.startswith(_BASE64_HEADS)
    return len(value) < 1024 and "\n" not in value and _suffix(value) in SUFFIXES


def is_video(value: Any) -> bool:
    """Whether a value of a column of any name is the path of a video, or a list of them."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_video, value))
    short = isinstance(value, str) and len(value) < 1024 and "\n" not in value
    return short and _suffix(value) in VIDEO_SUFFIXES


def listed(value: Any, entry: str) -> list[Any]:
    """One value or several as a list; text that spells a list (a cell of a table) is read."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.startswith("["):
        found = spelt(value)
        if not isinstance(found, list):
            raise DataError(f"{entry} is a broken list, {show(value)}; write it as a JSON list")
        return found
    return [] if value is None or value == "" else [value]


def spelt(text: str) -> Any:
    """The list or object that a text spells in JSON or as Python prints it; else None."""
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "{}"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for any file, or with a zero byte
        return False


def _suffix(name: str) -> str:
    _, dot, ending = name.partition("?")[0].rpartition(".")
    return f".{ending.lower()}" if dot else ""


def is_address(value: Any) -> bool:
    """Whether a value is a URL."""
    return isinstance(value, str) and _ADDRESS.match(value) is not None


def _refuse_url(value: str, entry: str) -> None:
    if is_address(value):
        raise DataError(
            f"{entry} is the address {shortened(value, 80)}; fetch the file (by img2dataset, wget) "
            "and name its folder or tar with --images, or store it here and name its path"
        )


def _decoded(text: str, entry: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{entry} is not base64: {error}; encode it again") from None
