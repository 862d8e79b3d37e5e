"""Height of the lines of printed text in an image, estimated without a detector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageFilter

STRIP = 96
"""Width in pixels of the vertical strips searched: a column of a table or of a page is wider."""
CONTRAST = 32.0
"""Gray levels between ink and its surroundings."""
HEIGHTS = (4, 120)
"""Lines lower than this cannot be told from noise, taller ones are seen at any size."""
CROSSINGS = 3.5
"""Changes between ink and ground along a row, per stretch as long as the line is high. Printed
Latin text has about six; edges of objects and ruled lines have fewer than one."""
RULE = 0.4
"""Share of a column of pixels that is ink above which it is a rule or a margin."""
EVIDENCE = 3
"""Pieces of lines that have to be found."""


def text_height(image: PIL.Image.Image) -> float | None:
    """Median height in pixels of a line of text, from the top of its letters to their descenders,
    or None where fewer than three pieces of lines are found.

    In each vertical strip a line is a run of rows with ink between rows without; what is kept has
    the many changes between ink and ground that letters have. Lines have to be within some 10
    degrees of horizontal. An estimate: within a quarter of the true height on rendered pages.
    """
    gray = image.convert("L")
    around = np.asarray(gray.filter(PIL.ImageFilter.BoxBlur(12)), np.float32)
    darker = around - np.asarray(gray, np.float32)
    # Dark text on a light ground or the reverse: the one that finds more lines.
    heights = max((_heights(sign * darker > CONTRAST) for sign in (1, -1)), key=len)
    return float(np.median(heights)) if len(heights) >= EVIDENCE else None


def _heights(ink: np.ndarray) -> list[int]:
    """Heights of all pieces of lines in a mask [H W]."""
    ink = ink & (ink.mean(0) < RULE)  # vertical rules join the lines of a table
    return [height for strip in _strips(ink) for height in _lines(strip)]


def _strips(ink: np.ndarray) -> Iterator[np.ndarray]:
    """Overlapping strips [H, STRIP] of a mask [H W]; the whole of a narrower one."""
    for left in range(0, max(1, ink.shape[1] - STRIP // 2), STRIP // 2):
        yield ink[:, left : left + STRIP]


def _lines(strip: np.ndarray) -> Iterator[int]:
    """Heights of the runs of rows with ink that look like text."""
    rows = np.concatenate([[False], strip.any(1), [False]])
    edges = np.flatnonzero(rows[1:] != rows[:-1])
    for top, bottom in zip(edges[::2], edges[1::2], strict=True):
        height = int(bottom - top)
        if not HEIGHTS[0] <= height <= HEIGHTS[1]:
            continue
        # The middle rows: those of accents and descenders are almost empty.
        middle = strip[top + height // 4 : bottom - height // 4]
        used = np.flatnonzero(strip[top:bottom].any(0))
        width = int(used[-1] - used[0]) + 1
        if width < 2 * height:
            continue
        crossings = np.median((middle[:, 1:] != middle[:, :-1]).sum(1))
        if crossings * height >= CROSSINGS * width:
            yield height
