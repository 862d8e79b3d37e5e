"""Images of one colour, failed screenshots and blank pages."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.core.sample import Sample


@dataclass
class Entropy:
    """least: bits a pixel of the grey levels' histogram; 0 is one colour, 8 all levels alike."""

    least: float = 0.2

    def reason(self, sample: Sample) -> str | None:
        for image in sample.images:
            bits = image.load().convert("L").entropy()
            if bits < self.least:
                return f"an image of {bits:.2f} bits a pixel, under {self.least}: nearly blank"
        return None
