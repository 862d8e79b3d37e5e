"""Ruled, striped or plain tables of products and numbers."""

from __future__ import annotations

from random import Random

from chiasm.data.boxes import HINT, Box, write_box
from chiasm.data.synthetic.canvas import Canvas, Color
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import PLACES, PRODUCTS

COLUMNS = ("Price", "Stock", "Sold", "Weight", "Rating", "Returns", "Pages", "Orders")
HEADS: tuple[Color, ...] = ((225, 232, 242), (232, 240, 228), (240, 232, 224), (235, 235, 235))
MARGIN = 24


def draw(random: Random) -> Content:
    """A title, a head and rows of a product name and whole numbers, no two of a column alike."""
    columns = random.sample(COLUMNS, random.randint(2, 4))
    names = random.sample(PRODUCTS, random.randint(3, 8))
    numbers = [random.sample(range(1, 100), len(names)) for _ in columns]
    return {
        "title": f"{random.choice(PLACES)}, list {random.randint(1, 40)}",
        "columns": ["Product", *columns],
        "rows": [
            [n, *map(str, row)] for n, row in zip(names, zip(*numbers, strict=True), strict=True)
        ],
    }


def key(content: Content) -> str:
    return f"{content['columns']} {content['rows']}"


def render(content: Content, random: Random) -> Rendered:
    family, size = random.choice(("sans", "serif", "mono", "stix")), random.randint(15, 20)
    body, head = font(family, size), font(family, size, bold=True)
    cells = [content["columns"], *content["rows"]]
    pad, high = random.randint(10, 22), round(size * random.uniform(1.7, 2.3))
    widths = [max(head.getlength(row[c]) for row in cells) + 2 * pad for c in range(len(cells[0]))]
    top = MARGIN + 2 * size
    width = max(sum(widths), head.getlength(content["title"])) + 2 * MARGIN
    canvas = Canvas(round(width), top + high * len(cells) + MARGIN)
    look, tint = random.choice(("ruled", "striped", "plain")), random.choice(HEADS)
    canvas.text((MARGIN, MARGIN), content["title"], head)
    boxes: dict[str, Box] = {}
    for r, row in enumerate(cells):
        left, y = float(MARGIN), top + r * high
        if r == 0 or (look == "striped" and r % 2 == 0):
            right = MARGIN + sum(widths)
            canvas.pen.rectangle((left, y, right, y + high), tint if r == 0 else (246, 246, 246))
        for c, text in enumerate(row):
            x, anchor = (left + pad, "lm") if c == 0 else (left + widths[c] - pad, "rm")
            box = canvas.text((x, y + high / 2), text, body if r else head, anchor=anchor)
            boxes[f"{row[0]}/{cells[0][c]}" if r else f"head/{text}"] = box
            if look == "ruled":
                canvas.pen.rectangle((left, y, left + widths[c], y + high), outline=(90, 90, 90))
            left += widths[c]
        if look == "plain":
            canvas.pen.line((MARGIN, y + high, left, y + high), (170, 170, 170))
    return Rendered(canvas.image, boxes)


def ask(content: Content, rendered: Rendered, random: Random) -> list[Asked]:
    rows, columns = content["rows"], content["columns"]
    column = random.choice(columns[1:])
    c = columns.index(column)
    row = random.choice(rows)
    values = {r[0]: int(r[c]) for r in rows}
    threshold = random.randint(20, 80)
    size = rendered.image.size
    lines = [" | ".join(line) for line in (columns, *rows)]
    return [
        Asked("title", "What is the title of the table?", content["title"]),
        Asked("cell", f"What is the {column} of {row[0]}?", row[c]),
        Asked("lookup", f"Which product has the {column} {row[c]}?", row[0]),
        Asked(
            "largest",
            f"Which product has the largest {column}?",
            max(values, key=values.__getitem__),
        ),
        Asked(
            "smallest",
            f"Which product has the smallest {column}?",
            min(values, key=values.__getitem__),
        ),
        Asked("total", f"What do the numbers in {column} add up to?", str(sum(values.values()))),
        Asked(
            "count above",
            f"How many products have a {column} above {threshold}?",
            str(sum(value > threshold for value in values.values())),
        ),
        Asked("count rows", "How many products are listed?", str(len(rows))),
        Asked("head", "Which columns does the table have?", ", ".join(columns)),
        Asked(
            "where",
            f"Where is the {column} of {row[0]}? {HINT}",
            write_box(rendered.boxes[f"{row[0]}/{column}"], size),
        ),
        Asked("transcribe", "Transcribe the table, cells parted by |.", "\n".join(lines)),
    ]


def caption(content: Content) -> str:
    columns = ", ".join(content["columns"][1:])
    return f"a table of {len(content['rows'])} products with their {columns}"


KIND = Kind(draw, key, render, ask, caption)
