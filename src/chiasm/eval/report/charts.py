"""Charts as inline SVG, coloured by the page's style sheet so that they follow dark mode.

Bars and intervals place things in per cent of the width and write text in pixels: they fill any
column, and a phone does not shrink their labels. Curves have a fixed shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SCALE = 0.8
"""Fraction of the width that 100 % takes; the rest is for the number beside the bar."""


@dataclass(frozen=True)
class Bar:
    """One bar: a css class, a name, a value in [0, 1] and its interval if known."""

    css: str
    name: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Group:
    """Bars that are compared with one another, and a mark all of them are compared with."""

    label: str
    bars: tuple[Bar, ...]
    mark: float | None = None


def percent(value: float) -> str:
    """A fraction as text; two decimals near 1, where one would round an error away."""
    digits = 0 if value in (0, 1) else 2 if 0.99 < value < 1 else 1
    return f"{100 * value:.{digits}f}\u202f%"


def grouped_bars(groups: Sequence[Group], mark_name: str = "") -> str:
    """Horizontal bars by group on a common axis from 0 to 100 %."""
    shapes, y = [], 0.0
    for group in groups:
        shapes.append(_text(0, y + 15, group.label, "group"))
        top, y = y + 24, y + 24
        for bar in group.bars:
            shapes += _bar(bar, y)
            y += 24
        if group.mark is not None:
            shapes.append(_line(group.mark, top - 3, y - 3, "halo"))
            said = f"{mark_name} {percent(group.mark)}"
            shapes.append(_line(group.mark, top - 3, y - 3, "mark", said))
        y += 14
    grid = [_line(tick / 4, 20, y - 8, "grid") for tick in range(5)]
    axis = [
        _text(100 * SCALE * tick / 4, y + 8, f"{25 * tick}", "tick", "middle" if tick else "start")
        for tick in range(5)
    ]
    said = "; ".join(
        f"{g.label}: " + ", ".join(f"{b.name} {percent(b.value)}" for b in g.bars) for g in groups
    )
    return _svg("".join([*grid, *shapes, *axis]), f'width="100%" height="{y + 14:.0f}"', said)


def interval_strip(bar: Bar, low: float, high: float) -> str:
    """A value and its interval on an axis from low to high, both ends labelled."""

    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low) / (high - low)))

    left, right = bar.interval or (bar.value, bar.value)
    body = (
        '<rect class="track" x="0" y="6" width="100%" height="8" rx="4"/>'
        f'<rect class="fill {bar.css} soft" x="{at(left):.2f}%" y="4" '
        f'width="{max(0.6, at(right) - at(left)):.2f}%" height="12" rx="4"/>'
        f'<circle class="fill {bar.css} ringed" cx="{at(bar.value):.2f}%" cy="10" r="6"/>'
        + _text(0, 32, f"{100 * low:.0f}\u202f%", "tick")
        + _text(100, 32, f"{100 * high:.0f}\u202f%", "tick", "end")
    )
    said = f"{bar.name} {percent(bar.value)}, interval {percent(left)} to {percent(right)}"
    return _svg(body, 'width="100%" height="36" class="strip"', said)


def meter(value: float, css: str, said: str) -> str:
    """A thin bar from 0 to 1."""
    width = 100 * min(1.0, max(0.0, value))
    body = (
        '<rect class="track" width="100%" height="6" rx="3"/>'
        f'<rect class="fill {css}" width="{width:.1f}%" height="6" rx="3"/>'
    )
    return _svg(body, 'width="100%" height="6"', said)


def curve(points: Sequence[tuple[float, float]], css: str, said: str) -> str:
    """A smoothed line over the faint raw one; logarithmic in y where values span a decade."""
    W, H, left, right, top, bottom = 340, 190, 44, 10, 10, 24
    points = _thin(points)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    smooth = smoothed(ys)
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    ticks = _log_ticks(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys))
    low, high = min([*ys, *ticks]), max([*ys, *ticks])

    def place(x: float, y: float) -> str:
        linear = (y - low) / (high - low)
        up = math.log(y / low) / math.log(high / low) if logarithmic else linear
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        return (
            f"{left + across * (W - left - right):.1f},{H - bottom - up * (H - top - bottom):.1f}"
        )

    shapes = []
    for tick in ticks:
        y = place(xs[0], tick).split(",")[1]
        shapes.append(f'<line class="grid" x1="{left}" x2="{W - right}" y1="{y}" y2="{y}"/>')
        shapes.append(
            f'<text class="tick" x="{left - 6}" y="{float(y) + 4:.1f}" '
            f'text-anchor="end">{tick:.3g}</text>'
        )
    for x, anchor in ((xs[0], "start"), (xs[-1], "end")):
        spot = place(x, low).split(",")[0]
        shapes.append(
            f'<text class="tick" x="{spot}" y="{H - 6}" text-anchor="{anchor}">{x:,.0f}</text>'
        )
    shapes.append(
        f'<text class="tick" x="{(left + W) / 2}" y="{H - 6}" text-anchor="middle">'
        f"step{' · log scale' if logarithmic else ''}</text>"
    )
    for values, extra in ((ys, "faint"), (smooth, "")):
        path = " ".join(place(x, y) for x, y in zip(xs, values, strict=True))
        shapes.append(f'<polyline class="stroke {css} {extra}" points="{path}"/>')
    return _svg("".join(shapes), f'viewBox="0 0 {W} {H}" class="curve"', said)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred mean over about a fifteenth of the points, narrower towards the ends: a one-sided
    mean would trail behind a falling loss."""
    last, reach, result = len(values) - 1, max(1, len(values) // 30), []
    for i in range(len(values)):
        half = min(reach, i, last - i)
        window = values[i - half : i + half + 1]
        result.append(sum(window) / len(window))
    return result


def _bar(bar: Bar, y: float) -> list[str]:
    width = 100 * SCALE * min(1.0, max(0.0, bar.value))
    shapes = [
        f'<rect class="fill {bar.css}" x="0" y="{y:.0f}" width="{width:.2f}%" height="18" rx="3">'
        f"<title>{escape(bar.name)} {percent(bar.value)}</title></rect>",
        _text(100, y + 14, percent(bar.value), "value", "end"),
    ]
    if bar.interval:
        low, high = (100 * SCALE * end for end in bar.interval)
        shapes.append(
            f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y + 9:.0f}" '
            f'y2="{y + 9:.0f}"/>'
        )
    return shapes


def _line(value: float, top: float, bottom: float, css: str, title: str = "") -> str:
    x = f"{100 * SCALE * value:.2f}%"
    hint = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{css}" x1="{x}" x2="{x}" y1="{top:.0f}" y2="{bottom:.0f}">{hint}</line>'


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    return (
        f'<text class="{css}" x="{x:.2f}%" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(body: str, attributes: str, said: str) -> str:
    return f'<svg role="img" aria-label="{escape(said)}" {attributes}>{body}</svg>'


def _thin(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a few: a long run must not weigh megabytes."""
    step = math.ceil(len(points) / most)
    runs = [points[i : i + step] for i in range(0, len(points), step)]
    return [(sum(p[0] for p in r) / len(r), sum(p[1] for p in r) / len(r)) for r in runs]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= 4.5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in and around the range, with 2 and 5 between when it is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    inside = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    return inside if len(inside) >= 2 else [low, high]
