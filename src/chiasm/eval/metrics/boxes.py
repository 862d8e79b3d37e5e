"""Where a reply points, and whether that is right."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Box(NamedTuple):
    """Left, top, right, bottom, in any unit that the other box or point shares."""

    left: float
    top: float
    right: float
    bottom: float


def parse_numbers(reply: str) -> list[float]:
    """The numbers of a reply in order: "(12, 34)", "<point>0.5 0.25</point>", "[[1,2,3,4]]". Names
    that end in a number ("x1=12") lose it."""
    return [float(n) for n in _NUMBER.findall(re.sub(r"[A-Za-z_]+\d*\s*[=:]", " ", reply))]


def parse_point(reply: str) -> tuple[float, float] | None:
    """The point a reply gives, the centre where it gives a box (left, top, right, bottom), or None
    where there are neither two nor four numbers."""
    numbers = parse_numbers(reply)
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        return (left + right) / 2, (top + bottom) / 2
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def parse_box(reply: str) -> Box | None:
    """The box of a reply with exactly four numbers, corners in any order, else None."""
    numbers = parse_numbers(reply)
    if len(numbers) != 4:
        return None
    a, b, c, d = numbers
    return Box(min(a, c), min(b, d), max(a, c), max(b, d))


def inside(point: tuple[float, float], box: Box) -> bool:
    """Whether a click hits: edges count (ScreenSpot, 2401.10935)."""
    return box.left <= point[0] <= box.right and box.top <= point[1] <= box.bottom


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where both are empty. Boxes with right < left raise ValueError."""
    for box in (a, b):
        if box.right < box.left or box.bottom < box.top:
            raise ValueError(f"{box}: right and bottom must not be before left and top")
    width = max(0.0, min(a.right, b.right) - max(a.left, b.left))
    height = max(0.0, min(a.bottom, b.bottom) - max(a.top, b.top))
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (a, b))
    union = areas - width * height
    return width * height / union if union else 0.0


def scale(box: Box, width: float, height: float) -> Box:
    """A box of fractions in units of an image of this size, or pixels as fractions with 1/size."""
    return Box(box.left * width, box.top * height, box.right * width, box.bottom * height)
