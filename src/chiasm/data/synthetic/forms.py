"""Filled-in forms: labelled fields and ticked or empty boxes."""

from __future__ import annotations

from random import Random

from chiasm.data.boxes import HINT, Box, write_box
from chiasm.data.degrade import scan
from chiasm.data.synthetic.canvas import Canvas, Color
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import GIVEN, STREETS, SURNAMES, TOWNS

TITLES = ("Membership form", "Registration", "Loan request", "Change of address", "Course sign-up")
OPTIONS = (
    "Newsletter",
    "Student rate",
    "Paper invoice",
    "Parking permit",
    "Vegetarian meals",
    "Library card",
    "Evening course",
    "Photo consent",
)
PENS: tuple[Color, ...] = ((28, 42, 140), (20, 20, 20), (16, 84, 60))
WIDTH, MARGIN = 560, 32


def draw(random: Random) -> Content:
    given, surname = random.choice(GIVEN), random.choice(SURNAMES)
    number = random.randint(100000, 999999)
    fields = {
        "Name": f"{given} {surname}",
        "Birth date": f"{random.randint(1940, 2008)}-{random.randint(1, 12):02}"
        f"-{random.randint(1, 28):02}",
        "Street": f"{random.choice(STREETS)} Street {random.randint(1, 120)}",
        "Town": random.choice(TOWNS),
        "Phone": f"0{random.randint(100, 999)} {number}",
        "E-mail": f"{given.lower()}.{surname.lower()}@example.org",
        "Customer no.": f"{random.choice('ABCDEFGH')}-{random.randint(1000, 9999)}",
    }
    kept = ["Name", *random.sample(list(fields)[1:], random.randint(3, 6))]
    options = random.sample(OPTIONS, random.randint(3, 5))
    return {
        "title": random.choice(TITLES),
        "fields": {label: fields[label] for label in kept},
        "options": {option: random.random() < 0.5 for option in options},
    }


def key(content: Content) -> str:
    """The person: no one in the test half has filled in a form of the training half."""
    return content["fields"]["Name"]


def render(content: Content, random: Random) -> Rendered:
    family, written = random.choice(("sans", "serif")), random.choice(("sans", "mono", "stix"))
    size = random.randint(15, 18)
    label, hand = font(family, size), font(written, size + 1)
    pen, step = random.choice(PENS), round(size * random.uniform(2.4, 3.0))
    rows = len(content["fields"]) + len(content["options"])
    canvas = Canvas(WIDTH, 2 * MARGIN + step * (rows + 2))
    canvas.text((MARGIN, MARGIN), content["title"], font(family, size + 8, bold=True))
    boxes: dict[str, Box] = {}
    boxed, y, left = random.random() < 0.5, MARGIN + step * 1.5, MARGIN + 150
    for name, value in content["fields"].items():
        canvas.text((MARGIN, y), name, label, anchor="lm")
        field = (left, y - 0.4 * step, WIDTH - MARGIN, y + 0.4 * step)
        if boxed:
            canvas.pen.rectangle(field, outline=(120, 120, 120))
        else:
            canvas.pen.line((left, field[3], field[2], field[3]), (120, 120, 120))
        boxes[name] = canvas.text((left + 8, y), value, hand, pen, "lm")
        y += step
    for name, ticked in content["options"].items():
        square = (MARGIN, y - 8, MARGIN + 17, y + 9)
        canvas.pen.rectangle(square, outline=(60, 60, 60), width=2)
        if ticked:
            canvas.pen.line((square[0] + 3, y - 5, square[2] - 3, y + 6), pen, 3)
            canvas.pen.line((square[0] + 3, y + 6, square[2] - 3, y - 5), pen, 3)
        canvas.text((MARGIN + 30, y), name, label, anchor="lm")
        boxes[name] = (square[0], square[1], square[2] + 1, square[3] + 1)
        y += step
    image = canvas.image
    return Rendered(scan(image, random, skew=0) if random.random() < 0.3 else image, boxes)


def ask(content: Content, rendered: Rendered, random: Random) -> list[Asked]:
    fields, options = content["fields"], content["options"]
    option = random.choice(list(options))
    ticked = [name for name, on in options.items() if on]
    value = random.choice(list(fields))
    where = write_box(rendered.boxes[option], rendered.image.size)
    return [
        Asked("title", "What is the title of the form?", content["title"]),
        *(Asked("field", f"What is filled in for {n}?", v) for n, v in fields.items()),
        Asked("which field", f"In which field does it say {fields[value]}?", value),
        Asked("ticked", f"Is the box {option} ticked?", "yes" if options[option] else "no"),
        Asked("count ticked", "How many boxes are ticked?", str(len(ticked))),
        Asked("list ticked", "Which boxes are ticked?", ", ".join(ticked) or "none"),
        Asked("where", f"Where is the box of {option}? {HINT}", where),
    ]


def caption(content: Content) -> str:
    return f"a form titled {content['title']}, filled in by {content['fields']['Name']}"


KIND = Kind(draw, key, render, ask, caption)
