"""Height of lines of text, of rendered pages whose heights the font tells."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from matplotlib import get_data_path

from chiasm.vision.text_lines import text_height

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "pays", "pounds", "tea"]
INKS = {"dark on light": ((30, 30, 40), (245, 240, 230)), "light": ((220, 225, 220), (30, 34, 40))}


def page(size: int, font: str, ink: str, rules: bool = False) -> tuple[PIL.Image.Image, float]:
    """A page of text, and the median height of its lines."""
    random, face = np.random.default_rng(size), PIL.ImageFont.truetype(font, size)
    color, ground = INKS[ink]
    image = PIL.Image.new("RGB", (500, 400), ground)
    draw, heights, y = PIL.ImageDraw.Draw(image), [], 10
    while y < 400 - 2 * size:
        line = " ".join(random.choice(WORDS, 7))
        draw.text((12, y), line, fill=color, font=face)
        top, bottom = face.getbbox(line)[1::2]
        heights.append(bottom - top)
        y += int(1.4 * size)
    if rules:
        for x in (5, 300, 495):
            draw.line((x, 0, x, 400), fill=color)
    return image, float(np.median(heights))


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("size", [8, 10, 14, 20, 32])
@pytest.mark.parametrize("font", ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Bold"])
def test_lines_of_a_page_have_the_height_of_its_font(size, font, ink):
    image, height = page(size, f"{get_data_path()}/fonts/ttf/{font}.ttf", ink)
    assert text_height(image) == pytest.approx(height, rel=0.25)


def test_rules_of_a_table_do_not_hide_its_lines():
    image, height = page(14, f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", "light", rules=True)
    assert text_height(image) == pytest.approx(height, rel=0.25)


def test_an_image_without_text_has_no_height():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (200, 200, 3), np.uint8)
    smooth = PIL.Image.fromarray(noise[:12, :12]).resize((300, 300), PIL.Image.Resampling.BICUBIC)
    shapes = PIL.Image.new("RGB", (200, 200), "white")
    draw = PIL.ImageDraw.Draw(shapes)
    for place in range(10, 180, 40):
        draw.rectangle((20, place, 90, place + 20), fill="blue")
        draw.ellipse((110, place, 180, place + 20), fill="red")
    for image in (smooth, shapes, PIL.Image.new("1", (1, 1)), PIL.Image.new("L", (300, 3))):
        assert text_height(image) is None
