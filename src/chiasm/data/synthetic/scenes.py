"""Coloured shapes on a grid: counting and places, with exact answers."""

from __future__ import annotations

from collections import Counter
from random import Random

from chiasm.data.boxes import HINT, Box, write_box
from chiasm.data.synthetic.canvas import Canvas, Color
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered

COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 200),
    "yellow": (240, 200, 30),
    "purple": (130, 50, 160),
    "orange": (240, 130, 30),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
PAPERS: tuple[Color, ...] = ((255, 255, 255), (238, 240, 244), (246, 242, 230))
GRID, CELL = 4, 64  # cells a side; pixels a cell


def draw(random: Random) -> Content:
    """Two to eight objects of at most three looks, each in a cell of its own."""
    cells = random.sample([(r, c) for r in range(GRID) for c in range(GRID)], random.randint(2, 8))
    things = [(random.choice(list(COLORS)), random.choice(SHAPES)) for _ in range(3)]
    objects = []
    for row, column in cells:
        color, shape = random.choice(things)
        objects.append({"color": color, "shape": shape, "row": row, "column": column})
    return {"objects": objects}


def key(content: Content) -> str:
    """What is there, not where: the test half combines shapes, colours and numbers anew."""
    return str(sorted(Counter(_name(o) for o in content["objects"]).items()))


def _name(thing: dict) -> str:
    return f"{thing['color']} {thing['shape']}"


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def render(content: Content, random: Random) -> Rendered:
    canvas = Canvas(GRID * CELL, GRID * CELL, random.choice(PAPERS))
    boxes: dict[str, Box] = {}
    for n, thing in enumerate(content["objects"]):
        half = random.randint(14, 26)
        room = CELL // 2 - half - 2
        x = thing["column"] * CELL + CELL // 2 + random.randint(-room, room)
        y = thing["row"] * CELL + CELL // 2 + random.randint(-room, room)
        _paint(canvas, thing["shape"], x, y, half, COLORS[thing["color"]])
        boxes[str(n)] = (x - half, y - half, x + half + 1, y + half + 1)
    return Rendered(canvas.image, boxes)


def _paint(canvas: Canvas, shape: str, x: int, y: int, half: int, color: Color) -> None:
    box, third = (x - half, y - half, x + half, y + half), half // 3
    if shape == "circle":
        canvas.pen.ellipse(box, color)
    elif shape == "square":
        canvas.pen.rectangle(box, color)
    elif shape == "triangle":
        canvas.pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], color)
    else:
        canvas.pen.rectangle((x - half, y - third, x + half, y + third), color)
        canvas.pen.rectangle((x - third, y - half, x + third, y + half), color)


def ask(content: Content, rendered: Rendered, random: Random) -> list[Asked]:
    objects = content["objects"]
    color, shape = random.choice(list(COLORS)), random.choice(SHAPES)
    seen = _name(random.choice(objects))
    counted = Counter(_name(o) for o in objects)
    asked = [
        Asked("count all", "How many objects are there?", str(len(objects))),
        Asked("count", f"How many {_plural(seen)} are there?", str(counted[seen])),
        Asked("count color", f"How many {color} objects are there?",
              str(sum(o["color"] == color for o in objects))),
        Asked("count shape", f"How many objects are {_plural(shape)}?",
              str(sum(o["shape"] == shape for o in objects))),
        Asked("exists", f"Is there a {color} {shape}?",
              "yes" if counted[f"{color} {shape}"] else "no"),
    ]  # fmt: skip
    single = [n for n, o in enumerate(objects) if counted[_name(o)] == 1]
    if single:
        n = random.choice(single)
        box = write_box(rendered.boxes[str(n)], rendered.image.size)
        asked.append(Asked("where", f"Where is the {_name(objects[n])}? {HINT}", box))
    if len(single) > 1:
        one, other = (objects[n] for n in random.sample(single, 2))
        if one["column"] != other["column"]:
            side = "left" if one["column"] < other["column"] else "right"
            question = f"Is the {_name(one)} left or right of the {_name(other)}?"
            asked.append(Asked("left or right", question, side))
        if one["row"] != other["row"]:
            side = "above" if one["row"] < other["row"] else "below"
            question = f"Is the {_name(one)} above or below the {_name(other)}?"
            asked.append(Asked("above or below", question, side))
    return asked


def caption(content: Content) -> str:
    counted = sorted(Counter(_name(o) for o in content["objects"]).items())
    return ", ".join(f"{n} {_plural(name)}" if n > 1 else f"a {name}"
                     for name, n in counted)  # fmt: skip


KIND = Kind(draw, key, render, ask, caption)
