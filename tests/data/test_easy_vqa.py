"""The official data set, and its captions against two independent readings of it."""

import re
from functools import cache
from itertools import product

import pytest

from chiasm.core.sample import Sample
from chiasm.data.easy_vqa import ANSWERS, CAPTIONS, COLORS, SHAPES, determine, is_open, load

pytest.importorskip("easy_vqa")

RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


@pytest.fixture(scope="module")
def train() -> list[Sample]:
    return load("train")


@pytest.fixture(scope="module")
def test() -> list[Sample]:
    return load("test")


def pairs(sample: Sample) -> list[tuple[str, str]]:
    return [(q.text, a.text) for q, a in zip(sample.turns[::2], sample.turns[1::2], strict=True)]


def test_counts_of_the_official_splits(train: list[Sample], test: list[Sample]):
    assert (len(train), len(test)) == (4000, 1000)
    assert sum(len(s.turns) for s in train) == 2 * 38575
    assert sum(len(s.turns) for s in test) == 2 * 9673


def test_samples_are_independent_questions_on_one_image(train: list[Sample]):
    assert all(s.independent and len(s.images) == 1 for s in train)
    assert all([t.role for t in s.turns] == ["user", "assistant"] * (len(s.turns) // 2)
               for s in train)  # fmt: skip
    assert len({s.id for s in train}) == 4000
    assert {reply for s in train for _, reply in pairs(s)} == set(ANSWERS)


@cache
def truthful(asked: str, reply: str) -> frozenset[tuple[str, str]]:
    """The (colour, shape) candidates for which this is a right answer, each tried in turn."""
    words = re.findall(r"\w+", asked)

    def fits(color: str, shape: str) -> bool:
        named = [w for w in words if w in (*COLORS, *SHAPES)]
        described = all(word in (color, shape) for word in named)
        if reply in ("yes", "no"):
            return (described != ("not" in words or "no" in words)) == (reply == "yes")
        return described and reply == (color if "color" in words else shape)

    return frozenset(pair for pair in product(COLORS, SHAPES) if fits(*pair))


def test_determine_agrees_with_trying_every_candidate(train: list[Sample], test: list[Sample]):
    everything = frozenset(product(COLORS, SHAPES))
    for sample in train + test:
        left = everything.intersection(*(truthful(*pair) for pair in pairs(sample)))
        assert left, f"{sample.id} contradicts itself"
        colors, shapes = ({pair[i] for pair in left} for i in (0, 1))
        color = next(iter(colors)) if len(colors) == 1 else None
        shape = next(iter(shapes)) if len(shapes) == 1 else None
        caption = f"a {color} {shape}" if color and shape else None
        assert sample.meta == {"color": color, "shape": shape, "caption": caption}


def test_captions_are_among_the_known_ones_and_mostly_determined(train: list[Sample]):
    known = [s.meta["caption"] for s in train if s.meta["caption"]]
    assert set(known) == set(CAPTIONS)
    assert len(known) / len(train) > 0.85


def test_captions_agree_with_the_pixels(test: list[Sample]):
    captioned = [s for s in test if s.meta["caption"]][::9]
    assert len(captioned) >= 95
    for sample in captioned:
        counts = sorted(sample.images[0].load().getcolors(64 * 64), reverse=True)
        assert counts[1][1] == RGB[sample.meta["color"]], sample.id  # counts[0] is the background


def test_determine_says_none_where_more_than_one_is_possible():
    assert determine([], COLORS) is None
    assert determine([("is there a red shape?", "no")], COLORS) is None
    assert determine([("is there not a circle?", "no")], SHAPES) == "circle"
    assert determine([("what is the blue shape?", "circle")], COLORS) == "blue"


def test_open_questions_are_those_not_answered_by_yes_or_no(test: list[Sample]):
    for sample in test[:200]:
        for asked, reply in pairs(sample):
            assert is_open(asked) == (reply not in ("yes", "no"))
