"""Slips of 64×64 pixels: a document small enough for small models, in four lines of large type.

Everything can be read at the size at which the small encoder and image tokenizer look, and all
answers are words or numbers of a closed set. That makes it the set of documents on which both
routes can be trained to the end within minutes (docs/isoflop.md).
"""

from __future__ import annotations

from random import Random

from chiasm.data.boxes import Box
from chiasm.data.synthetic.canvas import Canvas, Color
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered

SHOPS = ("cafe", "inn", "mart", "shop")
GOODS = ("cake", "eggs", "jam", "milk", "nuts", "rice", "soap", "tea")
MOST = 5  # of one thing
SIDE, LINE = 64, 16  # pixels
BANDS: tuple[Color, ...] = ((30, 70, 150), (140, 40, 40), (30, 110, 60), (40, 40, 46))
PAPERS: tuple[Color, ...] = ((255, 255, 255), (250, 246, 232), (236, 240, 246))


def draw(random: Random) -> Content:
    """A shop, two different goods with how many of each, and whether the slip is paid."""
    items = [{"name": name, "count": random.randint(1, MOST)} for name in random.sample(GOODS, 2)]
    return {"shop": random.choice(SHOPS), "items": items, "paid": random.random() < 0.5}


def key(content: Content) -> str:
    """What was bought: the test half combines goods and numbers anew."""
    return ", ".join(_line(item) for item in content["items"])


def _line(item: dict) -> str:
    return f"{item['count']} {item['name']}"


def render(content: Content, random: Random) -> Rendered:
    """Four lines, moved by at most a pixel each way."""
    type_ = font(random.choice(("sans", "mono")), 14, bold=True)
    canvas = Canvas(SIDE, SIDE, random.choice(PAPERS))
    canvas.pen.rectangle((0, 0, SIDE, LINE - 1), random.choice(BANDS))
    x, y = 4 + random.randint(-1, 1), LINE // 2 + random.randint(-1, 1)
    boxes: dict[str, Box] = {}
    white: Color = (255, 255, 255)
    boxes["shop"] = canvas.text((x, y), content["shop"].upper(), type_, white, "lm")
    for n, item in enumerate(content["items"]):
        middle = y + (n + 1) * LINE
        boxes[f"count/{n}"] = canvas.text((x, middle), str(item["count"]), type_, anchor="lm")
        boxes[f"item/{n}"] = canvas.text((x + 14, middle), item["name"].upper(), type_, anchor="lm")
    state = "PAID" if content["paid"] else "DUE"
    boxes["state"] = canvas.text((x, y + 3 * LINE), state, type_, anchor="lm")
    return Rendered(canvas.image, boxes)


def ask(content: Content, _rendered: Rendered, random: Random) -> list[Asked]:
    first, second = content["items"]
    missing = random.choice([name for name in GOODS if name not in key(content)])
    there = random.choice((first, second))["name"]
    shop = random.choice(SHOPS)
    asked = [
        Asked("shop", "what is the shop?", content["shop"]),
        Asked("is shop", f"is this the {shop}?", _yes(shop == content["shop"])),
        Asked("paid", "is it paid?", _yes(content["paid"])),
        Asked("first", "what is the first item?", first["name"]),
        Asked("second", "what is the second item?", second["name"]),
        Asked("exists", f"is there {there}?", "yes"),
        Asked("exists", f"is there {missing}?", "no"),
        *(Asked("count", f"how many {i['name']}?", str(i["count"])) for i in (first, second)),
        Asked("total", "how many in all?", str(first["count"] + second["count"])),
    ]
    if first["count"] != second["count"]:
        more = max(first, second, key=lambda item: item["count"])
        question = f"is there more {first['name']} or {second['name']}?"
        asked.append(Asked("more", question, more["name"]))
    return asked


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def caption(content: Content) -> str:
    return f"{content['shop']}, {key(content)}, {'paid' if content['paid'] else 'due'}"


KIND = Kind(draw, key, render, ask, caption)
