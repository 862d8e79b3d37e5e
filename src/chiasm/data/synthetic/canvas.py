"""A page to set text on that says where everything went."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from chiasm.data.boxes import Box

Color = tuple[int, int, int]
INK: Color = (20, 20, 24)


class Canvas:
    """An image under construction, width × height pixels."""

    def __init__(self, width: int, height: int, paper: Color = (255, 255, 255)):
        self.image = PIL.Image.new("RGB", (width, height), paper)
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        font: ImageFont.FreeTypeFont,
        ink: Color = INK,
        anchor: str = "la",
    ) -> Box:
        """Write one line; returns the box of its ink."""
        self.pen.text(at, text, ink, font, anchor)
        return self.pen.textbbox(at, text, font, anchor)

    def cut(self, bottom: float) -> PIL.Image.Image:
        """The finished image, without what is empty below."""
        return self.image.crop((0, 0, self.image.width, min(self.image.height, int(bottom))))


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of whole words no wider than so many pixels; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def line_height(font: ImageFont.FreeTypeFont, spacing: float = 1.15) -> int:
    """Pixels from one line to the next."""
    return round(sum(font.getmetrics()) * spacing)


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)
