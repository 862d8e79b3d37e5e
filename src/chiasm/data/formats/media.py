"""Images and clips of samples as files."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.image import Unreadable, open_image
from chiasm.core.sample import Image, Video

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""How the names of image files end."""


class Appearing:
    """A file that appears whole or not at all: written beside its place, then moved there."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def image_file(image: Image, root: Path) -> str:
    """The image's path below `root`: where it stands, or saved there by content."""
    if isinstance(image.source, Path) and (name := relative(image.source, root)):
        return name
    name = f"images/{image.digest()[:32]}{suffix(image)}"
    if not (root / name).exists():
        with Appearing(root / name) as temporary:
            temporary.write_bytes(image_bytes(image))
    return name


def image_bytes(image: Image) -> bytes:
    """The encoded image as it is; a decoded one as PNG. Raises DataError if it is missing."""
    if isinstance(image.source, PIL.Image.Image):
        buffer = io.BytesIO()
        image.load().save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return image.encoded()
    except (Unreadable, OSError):
        image.load()  # raises with the file, the place and the remedy
        raise


def suffix(image: Image) -> str:
    """How the name of the image's file ends."""
    if isinstance(image.source, Path):
        return image.source.suffix.lower()
    if isinstance(image.source, PIL.Image.Image):
        return ".png"
    try:
        with open_image(image.source) as opened:
            return f".{(opened.format or 'image').lower()}"
    except Unreadable:
        image.load()  # raises with the place and the remedy
        raise


def video_file(video: Video, root: Path) -> str:
    """The clip's path below `root`: where it stands, or saved there by content."""
    if name := relative(video.path, root):
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
        with Appearing(root / name) as temporary:
            shutil.copyfile(video.path, temporary)
    return name


def relative(path: Path, root: Path) -> str | None:
    """The path from a folder to what is inside it, else None."""
    inner, outer = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return inner.relative_to(outer).as_posix() if inner.is_relative_to(outer) else None
