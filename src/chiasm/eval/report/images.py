"""Images as data URIs: the page must not need any other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image


def data_uri(path: Path, edge: int) -> str | None:
    """The image as a PNG of at most `edge` pixels a side; None when it cannot be read."""
    try:
        with PIL.Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None
    image.thumbnail((edge, edge))
    return encode(image)


def sheet(paths: Sequence[Path], columns: int, gap: int = 2) -> str | None:
    """Images side by side as one: a hundred small files cost more than their pixels."""
    images = []
    for path in paths:
        try:
            with PIL.Image.open(path) as image:
                images.append(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
            continue
    if not images:
        return None
    W, H = (max(p.size[axis] for p in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    page = PIL.Image.new("RGB", (columns * (W + gap) - gap, rows * (H + gap) - gap), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * (W + gap), i // columns * (H + gap)))
    return encode(page)


def encode(image: PIL.Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
