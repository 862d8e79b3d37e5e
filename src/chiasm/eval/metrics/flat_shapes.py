"""Finding flat shapes on a plain ground by rules, without anything learned.

For images like easy-VQA's; gives metrics/agreement.py what a detector does for photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

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
    image: PIL.Image.Image, palette: Mapping[str, tuple[int, int, int]] = PALETTE
) -> list[Seen]:
    """The regions that stand out from the ground (the median colour of the border), largest first:
    "rectangle", "circle" (any ellipse) or "triangle" by the best overlap with an ideal one whose
    sides are not rotated (name_of), and the nearest colour of the palette."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    outside = np.linalg.norm(pixels - np.median(border, 0), axis=2) > CONTRAST
    found = []
    for rows, columns in _regions(outside):
        if len(rows) < FEWEST:
            continue
        top, bottom = rows.min(), rows.max() + 1
        left, right = columns.min(), columns.max() + 1
        mask = np.zeros((bottom - top, right - left), bool)
        mask[rows - top, columns - left] = True
        color = np.median(pixels[rows, columns], 0)
        nearest = min(palette, key=lambda c: float(np.linalg.norm(color - palette[c])))
        box = Box(float(left), float(top), float(right), float(bottom))
        found.append((len(rows), Seen(name_of(mask), box, nearest)))
    return [seen for _, seen in sorted(found, key=lambda pair: -pair[0])]


def name_of(mask: np.ndarray) -> str:
    """Which shape the pixels [H W] of a region overlap best (intersection over union).

    Each ideal is tried at two sizes: that of the region's bounding box, and the one whose pixels
    have the region's mean and variance, which a stray pixel on the edge of a drawing hardly moves.
    """
    overlaps = {
        name: max(_overlap(mask, inside(x, y)) for x, y in _grids(mask, *fit))
        for name, (fit, inside) in _IDEALS.items()
    }
    return max(overlaps, key=lambda key: overlaps[key]).split()[0]


# Over a square of side 2 around 0, x to the right and y down: what is inside, and the variance of
# its pixels with their mean (x, y): a fit to the moments turns these into a place and a size. Last
# the largest side over the bounding box's: without it the ellipse around a square with round
# corners overlaps it best; five percent are the steps of pixels.
_IDEALS = {
    "rectangle": ((1 / 3, 1 / 3, 0, 0, inf), lambda x, y: (abs(x) <= 1) & (abs(y) <= 1)),
    "circle": ((1 / 4, 1 / 4, 0, 0, 1.05), lambda x, y: x**2 + y**2 <= 1),
    "triangle up": ((1 / 6, 2 / 9, 0, 1 / 3, inf), lambda x, y: (abs(x) <= (1 + y) / 2) & (y <= 1)),
    "triangle down": (
        (1 / 6, 2 / 9, 0, -1 / 3, inf),
        lambda x, y: (abs(x) <= (1 - y) / 2) & (y >= -1),
    ),
    "triangle left": (
        (2 / 9, 1 / 6, 1 / 3, 0, inf),
        lambda x, y: (abs(y) <= (1 + x) / 2) & (x <= 1),
    ),
    "triangle right": (
        (2 / 9, 1 / 6, -1 / 3, 0, inf),
        lambda x, y: (abs(y) <= (1 - x) / 2) & (x >= -1),
    ),
}


def _grids(
    mask: np.ndarray, vx: float, vy: float, mx: float, my: float, largest: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x [1 W], y [H 1]) of the pixels' centres in an ideal's coordinates, fitted to the bounding
    box and to the moments."""
    H, W = mask.shape
    rows, columns = np.nonzero(mask)
    y, x = np.arange(H)[:, None] + 0.5, np.arange(W)[None] + 0.5
    yield 2 * x / W - 1, 2 * y / H - 1
    # A pixel is a square of variance 1/12 itself.
    scale_x, scale_y = (np.sqrt((a.var() + 1 / 12) / v) for a, v in ((columns, vx), (rows, vy)))
    scale_x, scale_y = min(scale_x, largest * W / 2), min(scale_y, largest * H / 2)
    yield (x - columns.mean() - 0.5) / scale_x + mx, (y - rows.mean() - 0.5) / scale_y + my


def _overlap(mask: np.ndarray, ideal: np.ndarray) -> float:
    return float((mask & ideal).sum() / (mask | ideal).sum())


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
