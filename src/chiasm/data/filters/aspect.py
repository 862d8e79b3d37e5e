"""Images so long that resizing leaves nothing of them."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.core.sample import Sample


@dataclass
class Aspect:
    """most: longer side divided by the shorter."""

    most: float = 10.0

    def reason(self, sample: Sample) -> str | None:
        for image in sample.images:
            width, height = image.load().size
            ratio = max(width, height) / min(width, height)
            if ratio > self.most:
                return f"an image of {width}x{height}, {ratio:.1f} times as long as wide"
        return None
