"""Changes of an image that leave true what is said about it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import PIL.Image

# What a mirrored image makes false, or what asks for things that are not read in a mirror:
# letters, digits, clocks, arrows. Parts of words, so that inflected and joined forms count too; a
# word too many costs a mirror image, a word too few a true label.
_SIDES = (
    r"left|(?<![bf])right|\beast|(?:north|south)(?:ea|we)st|\bwest|clockwise|mirror|flip|"
    r"\blink[se]|\brecht[se]?|gauche|droit|izquierd|derech|sinistr|\bdestr|esquerd|direit|"
    r"слев|\bлев|справ|\bправ|左|右|東|西|왼|오른|يسار|يمين|बाएँ|बाएं|बायें|दाएँ|दाएं|दायें"
)
_READ = (
    r"read|writ|spell|say|text|word|letter|number|digit|label|title|logo|sign|clock|arrow|"
    r"transcri|ocr|table|chart|graph|map|page|document|receipt|screen|code"
)
_UNSAFE = re.compile(rf"{_SIDES}|\b(?:{_READ})|\d|[\"“”«»→←↗↖↘↙]", re.IGNORECASE)
_PLACE = re.compile(r"[\[(<]\s*\d+(?:\.\d+)?\s*[,;]\s*\d+(?:\.\d+)?")


def mirrorable(texts: Iterable[str]) -> bool:
    """Whether all that is said about an image is as true of its mirror image. Numbers and quoted
    words count as said of a side: they are coordinates, or read from the image."""
    return not any(_UNSAFE.search(text) for text in texts)


def movable(texts: Iterable[str]) -> bool:
    """Whether a shift by a few pixels leaves true what is said: no coordinates."""
    return not any(_PLACE.search(text) for text in texts)


def mirrored(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def augment(
    image: PIL.Image.Image, random: np.random.Generator, shift: int, mirror: bool
) -> PIL.Image.Image:
    """Move by up to `shift` pixels each way, filling from the edge; mirror half of the time."""
    if mirror and random.random() < 0.5:
        image = mirrored(image)
    if shift:
        pixels = np.asarray(image)
        down, right = random.integers(-shift, shift + 1, 2)
        rows = np.clip(np.arange(pixels.shape[0]) - down, 0, pixels.shape[0] - 1)
        columns = np.clip(np.arange(pixels.shape[1]) - right, 0, pixels.shape[1] - 1)
        image = PIL.Image.fromarray(pixels[rows][:, columns])
    return image
