"""Lines in an SVG that stands by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 64, 20, 16, 48


@dataclass(frozen=True)
class Line:
    """A name and its points (x, y), x rising."""

    name: str
    points: list[tuple[float, float]]


def line_chart(lines: Sequence[Line], x_name: str, y_name: str, log_x: bool = False) -> str:
    """All lines over common axes, names below; every point says its values on hover."""
    lines = [line for line in lines if line.points]
    xs = sorted({x for line in lines for x, _ in line.points}) or [1.0]
    ys = [y for line in lines for _, y in line.points] or [0.0]
    low, high = min(ys), max(ys)
    high = high if high > low else low + 1.0

    def along(x: float) -> float:
        a, b, v = (math.log10(t) if log_x else t for t in (xs[0], xs[-1], x))
        return LEFT + (WIDTH - LEFT - RIGHT) * (v - a) / ((b - a) or 1.0)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    shapes = []
    for tick in range(5):
        y = low + (high - low) * tick / 4
        shapes.append(f'<path d="M{LEFT} {up(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        shapes.append(_text(LEFT - 6, up(y) + 4, f"{y:.3g}", "end"))
    for x in xs if log_x else (xs[0], xs[-1]):
        shapes.append(_text(along(x), HEIGHT - BOTTOM + 16, f"{x:g}", "middle"))
    shapes.append(_text((LEFT + WIDTH) / 2, HEIGHT - BOTTOM + 34, x_name, "middle"))
    shapes.append(_text(LEFT + 6, TOP + 12, y_name, "start"))
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{along(x):.1f},{up(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="6 4"' if number >= len(lines) / 2 > 1.5 else ""
        shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        shapes += [
            f'<circle cx="{along(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(line.name)}: {x:g}, {y:.4g}</title></circle>"
            for x, y in line.points
        ]
        shapes.append(_text(LEFT, HEIGHT + 18 * (number + 1), line.name, "start", colour))
    whole = HEIGHT + 18 * (len(lines) + 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(shapes)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#444") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
