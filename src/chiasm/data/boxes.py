"""How a place in a picture is written in words: thousandths of its width and height."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chiasm.core.errors import DataError

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom are the first pixels outside."""

SCALE = 1000
HINT = "Answer as [left, top, right, bottom] in thousandths of the picture."


def write_fractions(corners: Sequence[float]) -> str:
    """[left, top, right, bottom] or [x, y] in thousandths, of fractions of width and height."""
    return f"[{', '.join(str(round(corner * SCALE)) for corner in corners)}]"


def write_box(box: Box, size: tuple[int, int]) -> str:
    """[left, top, right, bottom] in thousandths, of a box in a picture of (width, height) pixels;
    what lies outside the picture is cut off."""
    width, height = size
    left, right = (round(min(max(x, 0), width) * SCALE / width) for x in box[::2])
    top, bottom = (round(min(max(y, 0), height) * SCALE / height) for y in box[1::2])
    return f"[{left}, {top}, {right}, {bottom}]"


def read_box(text: str, size: tuple[int, int]) -> Box:
    """The box in pixels. Raises DataError where the text holds no four numbers in brackets."""
    found = re.search(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", text)
    if not found:
        raise DataError(f"'{text[:60]}' holds no box; write it as [left, top, right, bottom]")
    left, top, right, bottom = (int(n) / SCALE for n in found.groups())
    return left * size[0], top * size[1], right * size[0], bottom * size[1]
