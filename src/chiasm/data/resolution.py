"""What is left of images, and of the text in them, at the size that a model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.vision.text_lines import text_height

IMAGES = 32
"""Images that are looked at; each is decoded."""
LEGIBLE = 7.0
"""Pixels of a line of text below which letters run into one another."""
SHRUNK = 4.0
"""Times as long as the model sees it: smaller details than that are lost."""

Size = tuple[float, float]


@dataclass(frozen=True)
class Resolution:
    """Medians over the images of a data set.

    images: how many were looked at; with_text: in how many of them lines of text were found.
    size, input_size: width and height in pixels as they are and as the model sees them. shrunk: how
    many times shorter a side becomes, of the two sides the one that loses more. text, input_text:
    height in pixels of a line of text, as it is and as the model sees it; None without text.
    """

    images: int
    with_text: int
    size: Size
    input_size: Size
    shrunk: float
    text: float | None
    input_text: float | None

    def warning(self) -> str | None:
        """What is lost, with the numbers; None if nothing much is."""
        width, height = self.size
        seen = "images of {:.0f} x {:.0f} pixels are seen at {:.0f} x {:.0f}".format(
            width, height, *self.input_size
        )
        if self.input_text is not None and self.input_text < LEGIBLE:
            return (
                f"{seen}: lines of text {self.text:.0f} pixels high become {self.input_text:.1f}, "
                f"and below {LEGIBLE:.0f} letters cannot be told apart"
            )
        if self.shrunk > SHRUNK:
            return f"{seen}, {self.shrunk:.1f} times smaller: details are lost"
        return None


def resolution(
    samples: Sequence[Sample],
    input_size: Callable[[tuple[int, int]], Size],
    limit: int = IMAGES,
    seed: int = 0,
) -> Resolution | None:
    """Of up to `limit` samples with an image, drawn by the seed; input_size: as ImageCodec's. None
    where no sample has one that can be read."""
    sizes, seen, shrunk, text, input_text = [], [], [], [], []
    for place in np.random.default_rng(seed).permutation(len(samples)).tolist():
        if len(sizes) == limit:
            break
        try:
            images = samples[place].images
            image = images[0].load() if images else None
        except DataError:  # counted where the sample is used
            continue
        if image is None:
            continue
        own, smaller = image.size, input_size(image.size)
        sizes.append(own)
        seen.append(smaller)
        shrunk.append(max(own[0] / smaller[0], own[1] / smaller[1]))
        height = text_height(image)
        if height is not None:
            text.append(height)
            input_text.append(height * smaller[1] / own[1])
    if not sizes:
        return None
    # A stray line found in a photograph is no text.
    has_text = 2 * len(text) > len(sizes)
    return Resolution(
        len(sizes),
        len(text),
        _median(sizes),
        _median(seen),
        float(np.median(shrunk)),
        float(np.median(text)) if has_text else None,
        float(np.median(input_text)) if has_text else None,
    )


def _median(sizes: Sequence[Size]) -> Size:
    width, height = np.median(np.array(sizes, np.float64), 0)
    return float(width), float(height)
