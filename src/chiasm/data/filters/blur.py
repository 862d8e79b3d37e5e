"""Images out of focus: the variance of the Laplacian (Pech-Pacheco et al., 2000)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image

from chiasm.core.sample import Sample

EDGE = 512  # the longer side is shrunk to it, so that a number means the same for all images


@dataclass
class Blur:
    """least: variance of the Laplacian of grey levels in [0, 255]; sharp photos have hundreds."""

    least: float = 20.0

    def reason(self, sample: Sample) -> str | None:
        for image in sample.images:
            value = sharpness(image.load())
            if value < self.least:
                return f"a blurred image: sharpness {value:.1f}, under {self.least}"
        return None


def sharpness(image: PIL.Image.Image) -> float:
    """Variance of the 4-neighbour Laplacian; 0 for an image under 3 pixels a side."""
    grey = image.convert("L")
    grey.thumbnail((EDGE, EDGE))
    x = np.asarray(grey, np.float32)
    if min(x.shape) < 3:
        return 0.0
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return float((around - 4 * x[1:-1, 1:-1]).var())
