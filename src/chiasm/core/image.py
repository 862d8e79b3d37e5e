"""Bytes that claim to be an image to RGB pixels that look as their maker meant, or a reason.

Checked before decoding: size in bytes and in pixels (a PNG of 40 kB can unfold to gigabytes).
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageOps

from chiasm.core import moved

# Only formats of images: PIL would start Ghostscript for an EPS that is called x.jpg.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MOST_BYTES = 256 * 2**20
MOST_PIXELS = 100_000_000
HEAD = 2**16
"""Bytes in which nearly every image states its size."""
ORIENTATION = 0x0112
"""EXIF's tag; 5 to 8 are turned by a quarter."""
PAGES = {b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<svg": "an SVG drawing",
         b"%pdf": "a PDF", b"%!ps": "a PostScript file"}  # fmt: skip


class Unreadable(Exception):  # noqa: N818 -- the reason, for the DataError that names the file
    """Why bytes are no usable image."""


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. A pipe would wait for ever, a device never end."""
    found = path.stat()  # OSError: missing, or a loop of links
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("is not a file")
    if found.st_size > MOST_BYTES:
        raise Unreadable(f"{found.st_size:,} bytes, more than the {MOST_BYTES:,} allowed")
    return path.read_bytes()


def open_image(data: bytes) -> PIL.Image.Image:
    """The image with its header read, not decoded. Raises Unreadable."""
    if not data:
        raise Unreadable("an empty file")
    if len(data) > MOST_BYTES:
        raise Unreadable(f"{len(data):,} bytes, more than the {MOST_BYTES:,} allowed")
    PIL.Image.init()  # once: the plugins that this build of PIL has
    formats = [name for name in FORMATS if name in PIL.Image.OPEN]
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:  # decoders raise what they like
        raise Unreadable(_what_it_is(data) or _words(error)) from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{width}x{height}, more than the {MOST_PIXELS:,} pixels allowed")
    return image


def header_size(source: Path | bytes) -> tuple[int, int]:
    """(width, height) as `decode` gives them, from the first bytes alone where they say it. Raises
    Unreadable, OSError."""
    if isinstance(source, bytes):
        return _stated_size(source)
    with source.open("rb") as file:
        head = file.read(HEAD)
    try:
        return _stated_size(head)
    except Unreadable:  # what stands before the size is longer, or comes last (TIFF)
        return _stated_size(read_file(source))


def _stated_size(data: bytes) -> tuple[int, int]:
    with open_image(data) as image:
        width, height = image.size
        # PIL turns TIFF by itself, its size too, and would decode a PNG whole to look for EXIF
        # behind its pixels.
        stated = "exif" in image.info if image.format == "PNG" else image.format != "TIFF"
        try:
            turned = stated and image.getexif().get(ORIENTATION, 1) >= 5
        except Exception:  # as decode: a broken EXIF block says nothing
            turned = False
    return (height, width) if turned else (width, height)


def decode(data: bytes) -> PIL.Image.Image:
    """The first frame, upright, RGB. Raises Unreadable."""
    image = open_image(data)  # in memory: nothing to close
    try:
        image.load()
    except Exception as error:  # truncated, or broken inside
        raise Unreadable(_words(error)) from None
    return rgb(_upright(image))


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB as it is meant to look: 16 bits a channel scaled, transparency over white.

    PIL's convert clips what is above 255, so that 16-bit scans turn white, and drops
    transparency, so that black text on nothing turns black on black. RGB comes back itself, not a
    copy: draw on a copy of it.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        white = PIL.Image.new("RGBA", whole.size, "white")
        return PIL.Image.alpha_composite(white, whole).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 8 bits from whole numbers of 16 bits, or floats in [0, 1] or [0, 255]."""
    pixels = np.nan_to_num(np.asarray(image, np.float64))
    top = float(pixels.max(initial=0.0))
    if image.mode.startswith("I"):
        scale = 255 / 65535 if image.mode != "I" or top > 255 else 1.0
    else:
        scale = 255.0 if top <= 1 else 1.0
    return PIL.Image.fromarray(np.clip(pixels * scale + 0.5, 0, 255).astype(np.uint8))


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turned as the camera was held. A broken EXIF block says nothing about that."""
    try:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image  # exif_transpose would copy it
        return PIL.ImageOps.exif_transpose(image)
    except Exception:
        return image


def _what_it_is(data: bytes) -> str:
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, name in PAGES.items():
        if head.startswith(mark) or (head.startswith(b"<?xml") and mark in head):
            return f"holds {name}, not an image"
    return ""


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "cannot identify the image" if "cannot identify" in text else text


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
