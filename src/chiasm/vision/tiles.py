"""Large images cut into tiles that an encoder of fixed resolution sees one by one.

Two published ways, down to their roundings: LLaVA-NeXT (its authors' note of January 2024, AnyRes)
fits the image into the best of given resolutions and fills the rest with black; Idefics3
(2408.12637) stretches it to whole tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import PIL.Image

from chiasm.vision.patches import resized

LARGEST = 4096
"""The longest side, in pixels, that Idefics3 ever resizes an image to."""


def best_resolution(image: tuple[int, int], choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of resolutions (height, width) the one that keeps most pixels of an image (width, height),
    and of those that keep as many the one with least to fill."""
    width, height = image

    def kept(choice: tuple[int, int]) -> int:
        scale = min(choice[1] / width, choice[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    return max(choices, key=lambda c: (kept(c), kept(c) - c[0] * c[1]))


def fit_into(image: PIL.Image.Image, height: int, width: int, resample: int) -> PIL.Image.Image:
    """The image as large as it fits, in the middle of a black one of this size."""
    across, down = width / image.width, height / image.height
    if across < down:
        size = (width, min(math.ceil(image.height * across), height))
    else:
        size = (min(math.ceil(image.width * down), width), height)
    whole = PIL.Image.new("RGB", (width, height))
    whole.paste(resized(image, size, resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return whole


def unpadded(image: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """How many of `rows` above and below, and of `columns` left and right, are filling where an
    image (width, height) was fitted into them."""
    width, height = image
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def stretched(image: tuple[int, int], longest_edge: int, side: int) -> list[tuple[int, int]]:
    """The sizes (width, height) that an image (width, height) goes through: its longer side at
    longest_edge, then both at multiples of `side`."""
    width, height = _at_longest(image, longest_edge)
    aspect = width / height
    if width >= height:
        columns = math.ceil(width / side)
        rows = math.ceil(int(columns * side / aspect) / side)
    else:
        rows = math.ceil(height / side)
        columns = math.ceil(int(rows * side * aspect) / side)
    return [(width, height), (columns * side, rows * side)]


def _at_longest(image: tuple[int, int], longest_edge: int) -> tuple[int, int]:
    """The shorter side is rounded to an even number, then all to at most LARGEST."""
    width, height = image
    aspect = width / height
    if width >= height:
        width, height = longest_edge, int(longest_edge / aspect)
        height += height % 2
    else:
        width, height = int(longest_edge * aspect), longest_edge
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height and width > LARGEST:
        width, height = LARGEST, int(LARGEST / aspect)
    elif height > width and height > LARGEST:
        width, height = int(LARGEST * aspect), LARGEST
    return max(width, 1), max(height, 1)


def cut(image: PIL.Image.Image, side: int) -> list[PIL.Image.Image]:
    """Squares of this side, in reading order."""
    return [
        image.crop((x, y, x + side, y + side))
        for y in range(0, image.height, side)
        for x in range(0, image.width, side)
    ]
