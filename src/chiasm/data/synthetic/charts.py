"""Bar, line and pie charts of a small table, drawn by matplotlib.

Every value can be read exactly: it is written at its mark, or lies on a labelled grid line.
"""

from __future__ import annotations

from random import Random
from typing import Any

import PIL.Image

from chiasm.core.errors import MissingExtraError
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import GROUPS, MEASURES, PLACES

NAMES = {
    "bar": "bar chart",
    "barh": "horizontal bar chart",
    "line": "line chart",
    "pie": "pie chart",
}
PALETTES = (
    ("#3366aa", "#dd8833"),
    ("#118866", "#993377"),
    ("#444444", "#cc3333"),
    ("#2288bb", "#77aa22"),
)
FONTS = ("DejaVu Sans", "DejaVu Serif", "STIXGeneral")
STEPS = 8  # labelled grid lines


def draw(random: Random) -> Content:
    """A title, a unit, labels and one or two named series of whole numbers, no two of a series
    alike."""
    kind = random.choice(list(NAMES))
    measure, unit = random.choice(MEASURES)
    group = random.choice(GROUPS)
    count = random.randint(3, min(len(group), 6))
    start = random.randint(0, len(group) - count)
    places = random.sample(PLACES, 1 if kind == "pie" else random.randint(1, 2))
    step = random.choice((1, 2, 5, 10, 20, 50, 100))
    spread = range(1, STEPS + 1)
    series = {place: [step * n for n in random.sample(spread, count)] for place in places}
    return {
        "chart": kind,
        "title": f"{measure}, {' and '.join(places)}",
        "unit": unit,
        "step": step,
        "labels": list(group[start : start + count]),
        "series": series,
    }


def key(content: Content) -> str:
    """The numbers with their labels: one table in two styles is one content."""
    return f"{content['title']} {content['unit']} {content['labels']} {content['series']}"


def render(content: Content, random: Random) -> Rendered:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise MissingExtraError("matplotlib", "synthetic", "Drawing charts") from None
    style: Any = {
        "font.family": random.choice(FONTS),
        "font.size": random.choice((10, 11, 12)),
        "axes.spines.top": random.random() < 0.5,
        "axes.spines.right": random.random() < 0.5,
        "figure.facecolor": random.choice(("white", "#fafaf5", "#f2f5fa")),
    }
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)  # inches
    with matplotlib.rc_context(style):
        figure = Figure(
            figsize=(random.uniform(5.2, 6.4), random.uniform(3.8, 4.6)),
            dpi=100,
            layout=layout,
        )
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        (_pie if content["chart"] == "pie" else _axes)(axes, content, random)
        axes.set_title(content["title"], pad=12)
        canvas.draw()
        image = PIL.Image.frombuffer(
            "RGBA", canvas.get_width_height(), canvas.buffer_rgba().tobytes()
        )
    return Rendered(image.convert("RGB"))


def _pie(axes, content: Content, random: Random) -> None:
    (values,) = content["series"].values()
    texts = [f"{label}: {value}" for label, value in zip(content["labels"], values, strict=True)]
    shades = [0.25 + 0.6 * n / len(values) for n in range(len(values))]
    import matplotlib

    colors = matplotlib.colormaps[random.choice(("viridis", "Set2", "Pastel1", "cividis"))](shades)
    axes.pie(values, labels=texts, colors=colors, startangle=random.randrange(360))
    axes.set_xlabel(content["unit"])


def _axes(axes, content: Content, random: Random) -> None:
    labels, series, step = content["labels"], content["series"], content["step"]
    written = len(series) == 1 and random.random() < 0.6
    thickness = 0.8 / len(series)
    for n, (name, values) in enumerate(series.items()):
        color = random.choice(PALETTES)[n % 2]
        places = [i + (n - (len(series) - 1) / 2) * thickness for i in range(len(labels))]
        if content["chart"] == "line":
            (marks,) = axes.plot(range(len(labels)), values, "os"[n], ls="-", color=color)
            axes.margins(x=0.08)
        elif content["chart"] == "bar":
            marks = axes.bar(places, values, thickness * 0.9, color=color)
        else:
            marks = axes.barh(places, values, thickness * 0.9, color=color)
        marks.set_label(name)
        if written:
            _write_values(axes, content["chart"], marks, values)
    flat = content["chart"] == "barh"
    names, numbers = (axes.yaxis, axes.xaxis) if flat else (axes.xaxis, axes.yaxis)
    names.set_ticks(range(len(labels)), labels)
    # One step of room above the highest mark, so that a written value stays inside.
    (axes.set_xlim if flat else axes.set_ylim)(0, (STEPS + 1) * step)
    numbers.set_ticks(range(0, (STEPS + 1) * step, step))
    numbers.set_label_text(content["unit"])
    if not written:
        numbers.grid(alpha=0.6)
        axes.set_axisbelow(True)
    if len(series) > 1:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _write_values(axes, chart: str, marks, values: list[int]) -> None:
    if chart == "line":
        for place, value in enumerate(values):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
            axes.annotate(
                str(value),
                (place, value),
                (0, 7),
                textcoords="offset points",
                ha="center",
                bbox=box,
            )
    else:
        axes.bar_label(marks, padding=2)


def ask(content: Content, _rendered: Rendered, random: Random) -> list[Asked]:
    labels, unit = content["labels"], content["unit"]
    place = random.choice(list(content["series"]))
    values = dict(zip(labels, content["series"][place], strict=True))
    at = f" at {place}" if len(content["series"]) > 1 else ""
    one, other = random.sample(labels, 2)
    threshold = content["step"] * random.randint(2, STEPS - 2)
    above = sum(value > threshold for value in values.values())
    asked = [
        Asked("title", "What is the title of the chart?", content["title"]),
        Asked("kind", "What kind of chart is this?", NAMES[content["chart"]]),
        Asked("value", f"What is the value of {one}{at}?", str(values[one])),
        Asked("unit", "Which unit are the values in?", unit),
        Asked(
            "largest",
            f"Which label has the largest value{at}?",
            max(labels, key=values.__getitem__),
        ),
        Asked(
            "smallest",
            f"Which label has the smallest value{at}?",
            min(labels, key=values.__getitem__),
        ),
        Asked("total", f"What do all values{at} add up to?", str(sum(values.values()))),
        Asked("count above", f"How many values{at} are above {threshold}?", str(above)),
        Asked(
            "difference",
            f"What is the difference between {one} and {other}{at}?",
            str(abs(values[one] - values[other])),
        ),
    ]
    if len(content["series"]) > 1:
        first, second = content["series"]
        label = random.choice(labels)
        i = labels.index(label)
        more = content["series"][first][i] > content["series"][second][i]
        same = content["series"][first][i] == content["series"][second][i]
        if not same:
            question = f"Is the value of {label} higher at {first} or at {second}?"
            asked.append(Asked("compare", question, first if more else second))
    return asked


def caption(content: Content) -> str:
    return f"a {NAMES[content['chart']]} titled {content['title']}"


KIND = Kind(draw, key, render, ask, caption)
