"""Flat shapes by their best overlap with an ideal one: clean, and as a decoder draws them."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.eval.metrics.flat_shapes import find_shapes, name_of

CORNERS = {  # of triangles in a box (left, top, right, bottom), by where they point
    "up": lambda a, b, c, d: [(a, d), (c, d), ((a + c) / 2, b)],
    "down": lambda a, b, c, d: [(a, b), (c, b), ((a + c) / 2, d)],
    "left": lambda a, b, c, d: [(c, b), (c, d), (a, (b + d) / 2)],
    "right": lambda a, b, c, d: [(a, b), (a, d), (c, (b + d) / 2)],
}


def drawn(shape: str, box: tuple[float, float, float, float], points: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (64, 64), (240, 240, 255))
    draw = PIL.ImageDraw.Draw(image)
    if shape == "triangle":
        draw.polygon(CORNERS[points](*box), fill="red")
    else:
        getattr(draw, {"circle": "ellipse"}.get(shape, shape))(box, fill="red")
    return image


def wobbled(image: PIL.Image.Image, random: np.random.Generator) -> PIL.Image.Image:
    """As a decoder draws: edges that wander by two pixels, half the resolution, noise."""
    pixels = np.asarray(image)
    for axis in (0, 1):
        walk = np.cumsum(random.normal(0, 0.5, 64))
        walk = np.clip(walk - np.linspace(walk[0], walk[-1], 64), -2, 2).round().astype(int)
        lines = [
            np.roll(line, by, 0)
            for line, by in zip(np.moveaxis(pixels, axis, 0), walk, strict=True)
        ]
        pixels = np.moveaxis(np.stack(lines), 0, axis)
    blurred = PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BILINEAR)
    blurred = np.asarray(blurred.resize((64, 64), PIL.Image.Resampling.BILINEAR)).astype(float)
    return PIL.Image.fromarray(
        np.clip(blurred + random.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)
    )


@pytest.mark.parametrize("shape", ["rectangle", "circle", "triangle"])
def test_shapes_with_the_edges_of_a_decoder(shape):
    random = np.random.default_rng(0)
    right = 0
    for _ in range(60):
        left, top = random.integers(4, 30, 2)
        width, height = random.integers(16, 30, 2)
        image = drawn(shape, (left, top, left + width, top + height), "up")
        right += find_shapes(wobbled(image, random))[0].name == shape
    assert right >= 57


@settings(deadline=None)
@given(
    st.sampled_from(("rectangle", "circle", "triangle")),
    st.sampled_from(sorted(CORNERS)),
    st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(14, 36), st.integers(14, 36)),
    st.integers(0, 1000),
)
def test_clean_shapes_of_any_size_and_a_stray_pixel_beside_them(shape, points, place, seed):
    left, top, width, height = place
    image = drawn(shape, (left, top, left + width, top + height), points)
    assert find_shapes(image)[0].name == shape
    mask = np.asarray(image)[..., 1] < 128
    rows, columns = np.nonzero(mask)
    pick = np.random.default_rng(seed).integers(len(rows))
    # A line of pixels that sticks out makes the bounding box larger, not the shape another one.
    mask[rows[pick], columns[pick] : columns.max() + 4] = True
    rows, columns = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert name_of(cut) == shape


@pytest.mark.parametrize("size", [14, 20, 27])
@pytest.mark.parametrize("radius", [0.1, 0.2, 0.25])
def test_round_corners_make_no_circle_of_a_square(size, radius):
    image = PIL.Image.new("RGB", (64, 64), "white")
    box = (10, 12, 10 + size, 12 + size)
    PIL.ImageDraw.Draw(image).rounded_rectangle(box, radius * size, fill="red")
    assert find_shapes(image)[0].name == "rectangle"


def test_real_images_are_read_as_their_labels():
    pytest.importorskip("easy_vqa")
    from chiasm.data import easy_vqa

    samples = [s for s in easy_vqa.load("test") if s.meta["caption"]][:300]
    found = [find_shapes(sample.images[0].load())[0] for sample in samples]
    said = [f"a {one.color} {one.name}" for one in found]
    assert said == [sample.meta["caption"] for sample in samples]
