"""The public easy-VQA benchmark (package `easy-vqa`): 64×64 images of one coloured shape."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Literal

from chiasm.core.errors import MissingExtraError
from chiasm.core.sample import Image, Sample, assistant, user

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
CAPTIONS = tuple(f"a {color} {shape}" for color in COLORS for shape in SHAPES)
ANSWERS = ("yes", "no", *SHAPES, *COLORS)


def load(split: Literal["train", "test"]) -> list[Sample]:
    """One sample an image, all its questions as independent turns; official splits (4,000 and
    1,000 images, 38,575 and 9,673 questions). meta: caption ("a red circle", or None where the
    questions do not determine both attributes), color, shape. Raises MissingExtraError."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise MissingExtraError("easy-vqa", "demo", "The easy-VQA benchmark")
    root = Path(spec.origin).parent / "data" / split
    by_image: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for asked, reply, image in json.loads((root / "questions.json").read_text()):
        by_image[image].append((asked, reply))
    return [_sample(root, split, n, pairs) for n, pairs in sorted(by_image.items())]


def _sample(root: Path, split: str, number: int, pairs: list[tuple[str, str]]) -> Sample:
    image = Image(root / "images" / f"{number}.png", f"easy-VQA {split} image {number}")
    turns = [user(image, pairs[0][0]), assistant(pairs[0][1])]
    for asked, reply in pairs[1:]:
        turns += [user(asked), assistant(reply)]
    color, shape = determine(pairs, COLORS), determine(pairs, SHAPES)
    meta = {
        "color": color,
        "shape": shape,
        "caption": f"a {color} {shape}" if color and shape else None,
    }
    return Sample(tuple(turns), f"easy-vqa-{split}-{number}", "easy-vqa", True, meta)


def determine(pairs: list[tuple[str, str]], values: tuple[str, ...]) -> str | None:
    """The one value all questions and answers of an image leave possible, or None."""
    possible = set(values)
    for asked, reply in pairs:
        words = set(re.findall(r"\w+", asked))
        named = words & set(values)
        if reply in values:
            possible &= {reply}
        elif reply in ("yes", "no") and named:
            negated = bool(words & {"not", "no"})
            possible = possible & named if (reply == "yes") != negated else possible - named
        elif named:  # "what is the blue shape?" tells the colour whatever the answer
            possible &= named
    return possible.pop() if len(possible) == 1 else None


def is_open(question_text: str) -> bool:
    """Whether a question asks for a value rather than yes or no."""
    return question_text.startswith("what")
