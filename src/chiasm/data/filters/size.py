"""Images too small to show anything, or too large to be worth it."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.core.sample import Sample


@dataclass
class Size:
    """least, most: pixels of the shorter and of the longer side."""

    least: int = 16
    most: int = 16384

    def reason(self, sample: Sample) -> str | None:
        for image in sample.images:
            width, height = image.load().size
            if min(width, height) < self.least:
                return f"an image of {width}x{height}, a side under {self.least} pixels"
            if max(width, height) > self.most:
                return f"an image of {width}x{height}, a side over {self.most} pixels"
        return None
