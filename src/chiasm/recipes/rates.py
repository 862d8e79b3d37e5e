"""chiasm plan --plot: the learning rates of a recipe before it runs."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from chiasm.recipes.recipe import Recipe, batch_unit
from chiasm.train.schedule import rates
from chiasm.train.stage import Stage

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 260, 64, 40, 36


def plan_command(recipe: Recipe, plot: bool, image: Path) -> None:
    """Print the stages; with `plot` their rates too, which also become an SVG file."""
    console = Console()
    for stage in recipe.stages:
        unit = batch_unit(recipe.model, stage)
        peaks = ", ".join(f"{name} {rate:g}" for name, rate in stage.lr.items())
        console.print(
            f"{stage.name}: {stage.steps} steps of {stage.gradient_accumulation_steps} x "
            f"{stage.batch_size(unit)} {unit}, {stage.schedule}, "
            f"warm-up {stage.warmup_ratio:.0%}, {peaks}",
            highlight=False,
            soft_wrap=True,
        )
    if plot:
        for line in rows(recipe.stages):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        image.write_text(svg(recipe.stages), encoding="utf-8")
        console.print(f"drawn in {image}", highlight=False, soft_wrap=True)


def curves(stages: tuple[Stage, ...]) -> dict[str, list[tuple[int, float]]]:
    """(step of the run, rate) of every group, 0 where a stage freezes it."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for stage in stages for name in stage.lr}
    start = 0
    for stage in stages:
        own = rates(stage)
        for name, points in found.items():
            points += enumerate(own.get(name, [0.0] * stage.steps), start)
        start += stage.steps
    return found


def rows(stages: tuple[Stage, ...], width: int = 48) -> list[str]:
    """One line of eighth blocks a group, each column the mean of its steps over the group's peak;
    a group that is trained at all never shows as empty."""
    lines = []
    for name, points in curves(stages).items():
        values = [rate for _, rate in points]
        columns = min(width, len(values))
        edges = [len(values) * i // columns for i in range(columns + 1)]
        means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
        peak = max(values) or 1.0
        marks = "".join(" ▁▂▃▄▅▆▇█"[_eighths(mean / peak)] for mean in means)
        lines.append(f"{name:>14} {marks} peak {max(values):g}")
    return lines


def svg(stages: tuple[Stage, ...]) -> str:
    """An image that stands by itself: a line a group over the steps of the run, stages named."""
    found = curves(stages)
    steps = sum(stage.steps for stage in stages)
    top = max((rate for points in found.values() for _, rate in points), default=0.0) or 1.0

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 16) * step / max(1, steps - 1)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top

    shapes = []
    for tick in range(5):
        rate = top * tick / 4
        shapes.append(f'<path d="M{LEFT} {y(rate):.1f}H{WIDTH - 16}" stroke="#ddd"/>')
        shapes.append(_text(LEFT - 6, y(rate) + 4, f"{rate:.2g}", "end"))
    start = 0
    for stage in stages:
        shapes.append(f'<path d="M{x(start):.1f} {TOP - 6}V{HEIGHT - BOTTOM}" stroke="#bbb"/>')
        shapes.append(_text(x(start) + 3, HEIGHT - BOTTOM + 14, stage.name, "start"))
        start += stage.steps
    for number, (name, points) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        every = max(1, len(points) // 2000)
        kept = points[::every] + points[-1:]
        path = " ".join(f"{x(step):.1f},{y(rate):.1f}" for step, rate in kept)
        shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-opacity="0.7"><title>{escape(name)}</title></polyline>'
        )
        shapes.append(_text(LEFT + 120 * number, 16, name, "start", colour))
    shapes.append(_text(WIDTH - 16, HEIGHT - 6, f"step {steps}", "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(shapes)}</svg>"
    )


def _eighths(share: float) -> int:
    return min(8, max(1, round(8 * share))) if share > 0 else 0


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#444") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
