"""How a place in an image is written in words: thousandths of its width and height."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from chiasm.core.errors import DataError
from chiasm.core.sample import BoxText, Part, Sample

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom are the first pixels outside."""

BoxFormat = Literal["thousandths", "fractions", "pixels", "loc"]
"""How a model writes boxes: [left, top, right, bottom] in thousandths of width and height (most
models since Shikra's and Qwen-VL's), as fractions with three digits, in pixels of the image as it
is, or as PaliGemma's location tokens <locNNNN>, top first, 0 to 1023."""

SCALE = 1000
HINT = "Answer as [left, top, right, bottom] in thousandths of the picture."


def write_fractions(corners: Sequence[float]) -> str:
    """[left, top, right, bottom] or [x, y] in thousandths, of fractions of width and height."""
    return f"[{', '.join(str(round(corner * SCALE)) for corner in corners)}]"


def write_as(
    corners: Sequence[float], format: BoxFormat, size: tuple[int, int] | None = None
) -> str:
    """A box or a point, given as fractions, in a model's format. size: (width, height) in pixels,
    which pixels need."""
    if format == "thousandths":
        return write_fractions(corners)
    if format == "fractions":
        return f"[{', '.join(f'{corner:.3f}' for corner in corners)}]"
    if format == "pixels":
        if size is None:
            raise DataError("a box in pixels needs the size of its image")
        return f"[{', '.join(str(round(c * size[i % 2])) for i, c in enumerate(corners))}]"
    order = (1, 0, 3, 2)[: len(corners)]
    return "".join(f"<loc{round(corners[i] * 1023):04d}>" for i in order)


def written(sample: Sample, format: BoxFormat) -> Sample:
    """The sample with its boxes (BoxText) in a model's format. Raises DataError where pixels are
    asked of an image that is not there."""
    boxes = any(
        isinstance(p, BoxText) for turn in (*sample.turns, *sample.rejected) for p in turn.content
    )
    if format == "thousandths" or not boxes:
        return sample

    def part(one: Part) -> Part:
        if not isinstance(one, BoxText):
            return one
        size = None
        if format == "pixels" and one.image < len(sample.images):
            size = sample.images[one.image].size()
        return BoxText(write_as(one.box, format, size), one.box, one.image)

    return sample.map_parts(part)


def write_box(box: Box, size: tuple[int, int]) -> str:
    """[left, top, right, bottom] in thousandths, of a box in an image of (width, height) pixels;
    what lies outside the image is cut off."""
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
