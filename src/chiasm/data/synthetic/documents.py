"""Typeset pages in several languages, scripts and fonts: reading, regions and reading order."""

from __future__ import annotations

from random import Random

from chiasm.data.boxes import HINT, Box, write_box
from chiasm.data.degrade import scan
from chiasm.data.synthetic.canvas import Canvas, around, line_height, wrap
from chiasm.data.synthetic.fonts import font
from chiasm.data.synthetic.kind import Asked, Content, Kind, Rendered
from chiasm.data.synthetic.words import SCRIPTS

STIX = ("English", "French", "German", "Greek", "Russian")
WIDTH, MARGIN, GAP = 620, 44, 28


def draw(random: Random) -> Content:
    """A title and two to five paragraphs of 8 to 22 words, no two of which begin alike."""
    language = random.choice(list(SCRIPTS))
    words = SCRIPTS[language].split()
    count = random.randint(2, 5)
    firsts = random.sample(words, count)
    paragraphs = []
    for first in firsts:
        rest = random.choices(words, k=random.randint(7, 21))
        paragraphs.append(_sentence([first, *rest]))
    title = _sentence(random.sample(words, random.randint(2, 3))).rstrip(".")
    return {"language": language, "title": title, "paragraphs": paragraphs}


def _sentence(words: list[str]) -> str:
    text = " ".join(words)
    return f"{text[0].title()}{text[1:]}."


def key(content: Content) -> str:
    return "\n".join([content["title"], *content["paragraphs"]])


def render(content: Content, random: Random) -> Rendered:
    families = ("sans", "serif", "mono") + (("stix",) if content["language"] in STIX else ())
    family, size = random.choice(families), random.randint(15, 19)
    body, head = font(family, size), font(family, size + 9, bold=True)
    columns = random.randint(1, 2) if family != "mono" else 1
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    step = line_height(body, random.uniform(1.05, 1.3))
    canvas = Canvas(WIDTH, 1400, random.choice(((255, 255, 255), (252, 250, 242))))
    y = float(MARGIN)
    heads = []
    for line in wrap(content["title"], head, WIDTH - 2 * MARGIN):
        heads.append(canvas.text((MARGIN, y), line, head))
        y += line_height(head)
    boxes: dict[str, Box] = {"title": around(heads)}
    top = y + 14
    # The first half of the paragraphs stands in the left column.
    bottoms, n = [], 0
    per_column = -(-len(content["paragraphs"]) // columns)
    for column in range(columns):
        x, y = MARGIN + column * (width + GAP), top
        for text in content["paragraphs"][column * per_column : (column + 1) * per_column]:
            inked = []
            for line in wrap(text, body, width):
                inked.append(canvas.text((x, y), line, body))
                y += step
            boxes[str(n)] = around(inked)
            n += 1
            y += 0.7 * step
        bottoms.append(y)
    image = canvas.cut(max(bottoms) + MARGIN - 0.7 * step)
    return Rendered(scan(image, random, skew=0) if random.random() < 0.4 else image, boxes)


def ask(content: Content, rendered: Rendered, random: Random) -> list[Asked]:
    paragraphs, size = content["paragraphs"], rendered.image.size
    n, m = sorted(random.sample(range(len(paragraphs)), 2))
    box = write_box(rendered.boxes[str(m)], size)
    one, other = (paragraphs[i].split()[0] for i in random.sample((n, m), 2))
    whole = "\n\n".join([content["title"], *paragraphs])
    return [
        Asked("title", "What is the title?", content["title"]),
        Asked("language", "Which language is this?", content["language"]),
        Asked("count", "How many paragraphs are there?", str(len(paragraphs))),
        Asked("paragraph", f"Transcribe paragraph {n + 1}.", paragraphs[n]),
        Asked("region", f"Transcribe the text at {box}.", paragraphs[m]),
        Asked(
            "where",
            f"Where is the paragraph that begins with {paragraphs[m].split()[0]}? {HINT}",
            box,
        ),
        Asked(
            "order",
            f"Which paragraph comes first, the one that begins with {one} or with {other}?",
            paragraphs[n].split()[0],
        ),
        Asked("last word", "What is the last word on the page?", paragraphs[-1].split()[-1][:-1]),
        Asked("transcribe", "Transcribe the page.", whole),
    ]


def caption(content: Content) -> str:
    return f"a page in {content['language']} titled {content['title']}"


KIND = Kind(draw, key, render, ask, caption)
