"""Augmentation leaves true what is said: nothing that a mirror or a shift makes false."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.augment import mirrorable, mirrored, movable
from chiasm.data.objectives import chat, moved

SIDED = (
    "left", "right", "leftmost", "top-left", "lower right", "topleft", "northeast", "clockwise",
    "links", "rechts", "rechte", "à gauche", "droite", "izquierda", "derecha", "sinistra",
    "слева", "правый", "左", "右边", "왼쪽", "3 o'clock", "[10, 20, 30, 40]",
    'the sign says "STOP"', "read the text", "which number", "12",
)  # fmt: skip
PLAIN = ("a dog runs", "two bright birds", "ein Hund", "what colour is it?", "a red circle")


def sample(*texts):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    turns = []
    for n, text in enumerate(texts):
        images = (Image(PIL.Image.fromarray(pixels)),) if n == 0 else ()
        turns += [user(*images, text), assistant("yes")]
    return Sample(tuple(turns), "s"), pixels


def views_of(one, count=24, **options):
    view = moved(chat, **options)
    seen = [view(one, np.random.default_rng(n)) for n in range(count)]
    return [np.asarray(s.images[0].load()) for s in seen]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PLAIN), max_size=3),
    st.sampled_from(SIDED),
    st.sampled_from(["{}", "the {} one", "IT IS {}!", "({})", "x\n{}\ny"]),
    st.sampled_from([str, str.upper, str.title]),
    st.data(),
)
def test_what_names_a_side_or_is_read_is_never_mirrored(plain, word, frame, case, data):
    texts = [*plain]
    texts.insert(data.draw(st.integers(0, len(plain))), frame.format(case(word)))
    one, pixels = sample(*texts)
    assert not mirrorable(texts)
    for seen in views_of(one, 6, shift=0, mirror=True):
        assert np.array_equal(seen, pixels)


@given(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_what_does_not_is_mirrored_half_of_the_time(texts):
    one, pixels = sample(*texts)
    flipped = sum(
        np.array_equal(seen, pixels[:, ::-1]) for seen in views_of(one, 40, shift=0, mirror=True)
    )
    assert 8 < flipped < 32


@pytest.mark.parametrize("text", ["[10, 20, 30, 40]", "at (3.5, 7)", "<12;4>"])
def test_coordinates_stay_where_they_are(text):
    one, pixels = sample("where is it?", text)
    assert not movable([text])
    for seen in views_of(one, 6, shift=2):
        assert np.array_equal(seen, pixels)
    assert len({seen.tobytes() for seen in views_of(sample("a dog")[0], 9, shift=2)}) > 1


def test_all_images_of_a_sample_are_mirrored_alike():
    one, pixels = sample("a dog")
    two = one.replace(
        turns=(
            user(*one.images, *one.images, Image(mirrored(one.images[0].load()))),
            assistant("b"),
        )
    )
    for n in range(12):
        seen = [
            np.asarray(i.load()) for i in moved(chat, 0, True)(two, np.random.default_rng(n)).images
        ]
        assert np.array_equal(seen[0], seen[1])
        assert np.array_equal(seen[0], seen[2][:, ::-1])
        assert np.array_equal(seen[0], pixels) or np.array_equal(seen[0], pixels[:, ::-1])
