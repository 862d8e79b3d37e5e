"""Pages of an imagined app: menu, tabs, fields, switches and buttons."""

from __future__ import annotations

from random import Random

from chiasm.data.boxes import HINT, Box, write_box
from chiasm.data.synthetic.canvas import Canvas, Color
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import PRODUCTS, SERVICES

MENU = ("Home", "Search", "Messages", "Projects", "Reports", "Team", "Help", "Settings")
TABS = ("General", "Privacy", "Billing", "Display", "Sound", "Backup")
SWITCHES = ("Dark mode", "Notifications", "Auto-save", "Location", "Large text", "Offline mode")
BUTTONS = ("Save", "Cancel", "Export", "Delete", "Share", "Print", "Undo")
FIELDS = ("User name", "Language", "Time zone", "City", "Nickname")
ACCENTS: tuple[Color, ...] = ((36, 99, 190), (20, 130, 100), (170, 60, 60), (110, 70, 170))
WIDTH, HEIGHT, BAR, SIDE = 640, 480, 52, 150


def draw(random: Random) -> Content:
    tabs = random.sample(TABS, random.randint(2, 4))
    menu = random.sample(MENU, random.randint(3, 6))
    names = random.sample(FIELDS, random.randint(1, 2))
    switches = random.sample(SWITCHES, random.randint(2, 3))
    return {
        "site": f"{random.choice(PRODUCTS)} {random.choice(SERVICES)}",
        "menu": menu,
        "heading": random.choice(menu),
        "tabs": tabs,
        "tab": random.choice(tabs),
        "fields": {name: f"{random.choice(PRODUCTS)}{random.randint(1, 99)}" for name in names},
        "switches": {name: random.random() < 0.5 for name in switches},
        "buttons": random.sample(BUTTONS, random.randint(2, 3)),
    }


def key(content: Content) -> str:
    """The app: the test half shows apps that were never trained on."""
    return content["site"]


def render(content: Content, random: Random) -> Rendered:
    dark, accent = random.random() < 0.3, random.choice(ACCENTS)
    paper, ink = ((32, 34, 40), (235, 235, 235)) if dark else ((255, 255, 255), (30, 30, 36))
    panel: Color = (48, 50, 58) if dark else (240, 242, 246)
    family, size = random.choice(("sans", "serif")), random.randint(14, 16)
    body, bold = font(family, size), font(family, size, bold=True)
    canvas = Canvas(WIDTH, HEIGHT, paper)
    boxes: dict[str, Box] = {}
    canvas.pen.rectangle((0, 0, WIDTH, BAR), accent)
    boxes["site"] = canvas.text(
        (16, BAR / 2), content["site"], font(family, 20, bold=True), (255, 255, 255), "lm"
    )
    canvas.pen.rectangle((0, BAR + 1, SIDE, HEIGHT), panel)
    for n, name in enumerate(content["menu"]):
        boxes[f"menu/{name}"] = canvas.text((16, BAR + 30 + n * 34), name, body, ink, "lm")
    left, y = SIDE + 24, BAR + 34
    canvas.text((left, y), content["heading"], font(family, 24, bold=True), ink, "lm")
    x, y = float(left), y + 42
    for name in content["tabs"]:
        here = name == content["tab"]
        box = canvas.text((x, y), name, bold if here else body, accent if here else ink, "lm")
        if here:
            canvas.pen.rectangle((box[0], y + 14, box[2], y + 17), accent)
        boxes[f"tab/{name}"] = box
        x = box[2] + 26
    y += 46
    for name, value in content["fields"].items():
        canvas.text((left, y), name, body, ink, "lm")
        boxes[f"field/{name}"] = (left + 130, y - 15, left + 350, y + 16)
        canvas.pen.rectangle((left + 130, y - 15, left + 349, y + 15), panel, (140, 140, 148))
        canvas.text((left + 140, y), value, body, ink, "lm")
        y += 42
    for name, on in content["switches"].items():
        canvas.text((left, y), name, body, ink, "lm")
        boxes[f"switch/{name}"] = _switch(canvas, left + 170, y, on, accent)
        y += 38
    x = left
    for n, name in enumerate(content["buttons"]):
        wide = round(body.getlength(name)) + 32
        fill = accent if n == 0 else (110, 114, 124)
        box = (x, HEIGHT - 62, x + wide, HEIGHT - 28)
        canvas.pen.rounded_rectangle(box, 6, fill)
        canvas.text((x + wide / 2, HEIGHT - 45), name, body, (255, 255, 255), "mm")
        boxes[f"button/{name}"] = (box[0], box[1], box[2] + 1, box[3] + 1)
        x += wide + 14
    return Rendered(canvas.image, boxes)


def _switch(canvas: Canvas, left: float, middle: float, on: bool, accent: Color) -> Box:
    """A switch with its knob to the right where it is on."""
    box = (left, middle - 9, left + 36, middle + 9)
    canvas.pen.rounded_rectangle(box, 9, accent if on else (150, 150, 158))
    knob = left + (20 if on else 2)
    canvas.pen.ellipse((knob, middle - 7, knob + 14, middle + 7), (255, 255, 255))
    return box[0], box[1], box[2] + 1, box[3] + 1


def ask(content: Content, rendered: Rendered, random: Random) -> list[Asked]:
    size, boxes = rendered.image.size, rendered.boxes
    button, entry = random.choice(content["buttons"]), random.choice(content["menu"])
    switch, field = random.choice(list(content["switches"])), random.choice(list(content["fields"]))
    on = [name for name, state in content["switches"].items() if state]
    box = boxes[f"button/{button}"]
    return [
        Asked("title", "What is the name of this app?", content["site"]),
        Asked("heading", "What is the heading of the page?", content["heading"]),
        Asked("menu", "Which entries does the menu have?", ", ".join(content["menu"])),
        Asked("tab", "Which tab is open?", content["tab"]),
        Asked("count tabs", "How many tabs are there?", str(len(content["tabs"]))),
        Asked("field", f"What does the field {field} hold?", content["fields"][field]),
        Asked("switch", f"Is {switch} on?", "yes" if content["switches"][switch] else "no"),
        Asked("list on", "Which switches are on?", ", ".join(on) or "none"),
        Asked("buttons", "Which buttons are there?", ", ".join(content["buttons"])),
        Asked("where", f"Where is the button {button}? {HINT}", write_box(box, size)),
        Asked(
            "where",
            f"Where is {entry} in the menu? {HINT}",
            write_box(boxes[f"menu/{entry}"], size),
        ),
        Asked("what", f"Which button is at {write_box(box, size)}?", button),
    ]


def caption(content: Content) -> str:
    return f"the {content['heading']} page of the app {content['site']}"


KIND = Kind(draw, key, render, ask, caption)
