"""Pictures as data URIs: the page must not need any other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image


def data_uri(path: Path, edge: int) -> str | None:
    """The picture as a PNG of at most `edge` pixels a side; None when it cannot be read."""
    try:
        with PIL.Image.open(path) as picture:
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None
    picture.thumbnail((edge, edge))
    return encode(picture)


def sheet(paths: Sequence[Path], columns: int, gap: int = 2) -> str | None:
    """Pictures side by side as one: a hundred small files cost more than their pixels."""
    pictures = []
    for path in paths:
        try:
            with PIL.Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
            continue
    if not pictures:
        return None
    W, H = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    page = PIL.Image.new("RGB", (columns * (W + gap) - gap, rows * (H + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % columns * (W + gap), i // columns * (H + gap)))
    return encode(page)


def encode(picture: PIL.Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
