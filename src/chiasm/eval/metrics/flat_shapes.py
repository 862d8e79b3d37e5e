"""Finding flat shapes on a plain ground by rules, without anything learned.

For pictures like easy-VQA's; gives metrics/agreement.py what a detector does for photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import PIL.Image

from chiasm.eval.metrics.agreement import Seen
from chiasm.eval.metrics.boxes import Box

PALETTE: Mapping[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
CONTRAST = 60.0  # distance in RGB from the ground at which a pixel belongs to a shape
FEWEST = 12  # pixels of a shape; less is noise of a decoder


def find_shapes(
    picture: PIL.Image.Image, palette: Mapping[str, tuple[int, int, int]] = PALETTE
) -> list[Seen]:
    """The regions that stand out from the ground (the median colour of the border), largest first:
    "rectangle", "circle" or "triangle" by how much of its bounding box a region fills (1, π/4 and
    1/2 for shapes that are not rotated), and the nearest colour of the palette."""
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    outside = np.linalg.norm(pixels - np.median(border, 0), axis=2) > CONTRAST
    found = []
    for rows, columns in _regions(outside):
        if len(rows) < FEWEST:
            continue
        top, bottom = rows.min(), rows.max() + 1
        left, right = columns.min(), columns.max() + 1
        fill = len(rows) / ((bottom - top) * (right - left))
        name = "rectangle" if fill > 0.9 else "circle" if fill > 0.66 else "triangle"
        color = np.median(pixels[rows, columns], 0)
        nearest = min(palette, key=lambda c: float(np.linalg.norm(color - palette[c])))
        box = Box(float(left), float(top), float(right), float(bottom))
        found.append((len(rows), Seen(name, box, nearest)))
    return [seen for _, seen in sorted(found, key=lambda pair: -pair[0])]


def _regions(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of each group of True pixels that touch at their sides."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    while left:
        edge = [left.pop()]
        region = []
        while edge:
            row, column = edge.pop()
            region.append((row, column))
            for step in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                beside = (row + step[0], column + step[1])
                if beside in left:
                    left.remove(beside)
                    edge.append(beside)
        rows, columns = np.array(region).T
        yield rows, columns
