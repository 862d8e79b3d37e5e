"""Lines of text with their places, and the questions that can be asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from chiasm.core.sample import Image, Message, assistant, user
from chiasm.data.boxes import HINT, Box, write_box


@dataclass(frozen=True)
class Line:
    """Text and the box in pixels that it fills."""

    text: str
    box: Box


def paragraphs(lines: Sequence[Line]) -> list[Line]:
    """Lines that follow one another closely in one column, joined by line breaks."""
    blocks: list[list[Line]] = []
    for line in lines:
        if blocks and _continues(blocks[-1][-1], line):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return [Line("\n".join(x.text for x in block), _around(block)) for block in blocks]


def _continues(above: Line, line: Line) -> bool:
    """Whether a line stands right below another, in letters of about its size."""
    high, low = above.box[3] - above.box[1], line.box[3] - line.box[1]
    gap = line.box[1] - above.box[3]
    return (
        same_column(above, line)
        and -0.3 * high < gap < 0.9 * min(high, low)
        and 0.7 < low / high < 1.4
    )


def same_column(one: Line, other: Line) -> bool:
    return one.box[0] < other.box[2] and other.box[0] < one.box[2]


def _around(lines: Sequence[Line]) -> Box:
    left, top, right, bottom = zip(*(line.box for line in lines), strict=True)
    return min(left), min(top), max(right), max(bottom)


def unique(lines: Sequence[Line]) -> list[Line]:
    """The lines whose text stands there only once, neither a mark nor a page number."""
    counted = Counter(line.text for line in lines)
    return [x for x in lines if counted[x.text] == 1 and sum(map(str.isalpha, x.text)) > 2]


def region_pairs(
    lines: Sequence[Line], size: tuple[int, int], random: Random, count: int = 3
) -> list[tuple[str, str]]:
    """Read what stands in a box; find the box of a text."""
    blocks = paragraphs(lines)
    read = random.sample(blocks, min(count, len(blocks)))
    known = unique(lines)
    find = random.sample(known, min(count, len(known)))
    return [
        *((f"Transcribe the text at {write_box(b.box, size)}.", b.text) for b in read),
        *((f"Where is the text '{x.text}'? {HINT}", write_box(x.box, size)) for x in find),
    ]


def order_pairs(lines: Sequence[Line], random: Random, count: int = 2) -> list[tuple[str, str]]:
    """Which line is read next or first: asked only where the order in the file and the places
    on the page say the same."""
    known = set(unique(lines))
    follows = [
        (a, b) for a, b in pairwise(lines)
        if {a, b} <= known and same_column(a, b) and a.box[3] <= b.box[3] and a.box[1] < b.box[1]
    ]  # fmt: skip
    pairs = []
    for a, b in random.sample(follows, min(count, len(follows))):
        pairs.append((f"Which line comes after '{a.text}'?", b.text))
        one, other = random.sample((a, b), 2)
        asked = f"Which is read first, '{one.text}' or '{other.text}'?"
        pairs.append((asked, a.text))
    return pairs


def turns(image: Image, pairs: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """Questions about one image, which the first of them carries."""
    result = []
    for n, (asked, reply) in enumerate(pairs):
        result += [user(*[image][n:], asked), assistant(reply)]
    return tuple(result)
