"""Quality against compute: points with intervals on a plane, compute in powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from chiasm.eval.report.charts import percent

W, H, LEFT, RIGHT, TOP, BOTTOM = 340, 260, 46, 14, 12, 42  # text stays legible on a phone


@dataclass(frozen=True)
class Point:
    """compute in FLOPs, quality in [0, 1] with its interval; runs: the single values behind it."""

    compute: float
    quality: float
    interval: tuple[float, float] | None = None
    runs: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of one model or route, joined in order of compute; css: its colour."""

    css: str
    name: str
    points: tuple[Point, ...]


def plane(series: Sequence[Series], said: str) -> str:
    """An SVG that fills its column; "" without points."""
    points = [p for s in series for p in s.points]
    if not points:
        return ""
    xs = [x for p in points for x in (p.compute, *(x for x, _ in p.runs))]
    ys = [y for p in points for y in (p.quality, *(p.interval or ()), *(y for _, y in p.runs))]
    low, high = math.log10(min(xs)) - 0.08, math.log10(max(xs)) + 0.08
    floor = max(0.0, math.floor(20 * (min(ys) - 0.01)) / 20)
    ceiling = min(1.0, math.ceil(20 * (max(ys) + 0.01)) / 20)

    def across(x: float) -> float:
        return LEFT + (math.log10(x) - low) / (high - low) * (W - LEFT - RIGHT)

    def up(y: float) -> float:
        inside = min(ceiling, max(floor, y))
        return H - BOTTOM - (inside - floor) / (ceiling - floor) * (H - TOP - BOTTOM)

    ticks = _columns({p.compute for p in points}, low, high)
    shapes = [*_rows(floor, ceiling, up), *_verticals(ticks, across)]
    for number, line in enumerate(series):
        # Side by side where several have the same compute, or whiskers would hide each other.
        aside = 5 * (number - (len(series) - 1) / 2)
        shapes += _series(line, lambda x, by=aside: across(x) + by, up)
    middle = (LEFT + W - RIGHT) / 2
    shapes.append(_text(middle, H - 6, "training FLOPs, parts included", "middle"))
    return (
        f'<svg role="img" aria-label="{escape(said)}" viewBox="0 0 {W} {H}" class="wide">'
        f"{''.join(shapes)}</svg>"
    )


def legend(series: Sequence[Series]) -> str:
    items = "".join(f'<span class="{s.css}"><i></i>{escape(s.name)}</span>' for s in series)
    return f'<div class="legend">{items}</div>'


def _series(line: Series, across, up) -> list[str]:
    ordered = sorted(line.points, key=lambda p: p.compute)
    path = " ".join(f"{across(p.compute):.1f},{up(p.quality):.1f}" for p in ordered)
    shapes = [f'<polyline class="stroke {line.css}" points="{path}"/>']
    for p in ordered:
        x, y = across(p.compute), up(p.quality)
        if p.interval:
            a, b = up(p.interval[0]), up(p.interval[1])
            shapes.append(
                f'<path class="spread {line.css}" d="M{x:.1f} {a:.1f}V{b:.1f}'
                f'M{x - 4:.1f} {a:.1f}h8M{x - 4:.1f} {b:.1f}h8"/>'
            )
        shapes += [
            f'<circle class="dot {line.css}" cx="{across(c):.1f}" cy="{up(q):.1f}" r="3"/>'
            for c, q in p.runs
        ]
        shapes.append(
            f'<circle class="mean {line.css}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
            f"<title>{escape(line.name)}: {percent(p.quality)} at {p.compute:.3g} FLOPs</title>"
            "</circle>"
        )
    return shapes


def _rows(floor: float, ceiling: float, up) -> list[str]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (ceiling - floor) / s <= 6.001)
    shapes, tick = [], math.ceil(floor / step - 1e-9) * step
    while tick <= ceiling + 1e-9:
        y = up(tick)
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{W - RIGHT}"/>')
        shapes.append(_text(LEFT - 6, y + 4, f"{100 * tick:.0f}\u202f%", "end"))
        tick += step
    return shapes


def _columns(computes: set[float], low: float, high: float) -> list[float]:
    """The points' own computes where they are few and apart; else powers of ten, with what lies
    between where those are few."""
    own = sorted(computes)
    if len(own) <= 5 and all(b > 1.4 * a for a, b in pairwise(own)):
        return own
    inside = [
        m * 10.0**d
        for d in range(math.floor(low), math.ceil(high) + 1)
        for m in (1, 2, 5)
        if low <= math.log10(m * 10.0**d) <= high
    ]
    tens = [t for t in inside if math.isclose(math.log10(t), round(math.log10(t)))]
    return tens if len(tens) > 2 else inside


def _verticals(ticks: Sequence[float], across) -> list[str]:
    shapes = []
    for tick in ticks:
        x = across(tick)
        shapes.append(f'<path class="grid" d="M{x:.1f} {TOP}V{H - BOTTOM}"/>')
        power = math.floor(math.log10(tick) + 1e-9)
        shapes.append(_text(x, H - BOTTOM + 16, f"{tick / 10.0**power:.2g}e{power}", "middle"))
    return shapes


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
