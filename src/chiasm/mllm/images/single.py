"""Images that the encoder sees as one."""

from __future__ import annotations

import numpy as np
import PIL.Image

from chiasm.core.batch import Slot
from chiasm.mllm.config import CropConfig, NativeConfig, PadConfig
from chiasm.mllm.images.base import ImageMode
from chiasm.vision.patches import crop_to_square, fit, fit_padded, native


class SingleMode(ImageMode):
    """Resized, padded, cropped, or at its own aspect, as the configuration says."""

    def tiles(self, image: PIL.Image.Image) -> list[PIL.Image.Image]:
        e = self.encoder
        if isinstance(self.config, CropConfig):
            return [crop_to_square(image, self.side, e.resample)]
        longest, count = self._limits()
        if isinstance(self.config, PadConfig):
            red, green, blue = (int(255 * level) for level in e.mean)
            colour = (red, green, blue)
            return [fit_padded(image, colour, longest, e.patch_size, count, e.resample)]
        return [fit(image, longest, e.patch_size, count, e.resample)]

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        longest, count = self._limits()
        width, height = size
        if isinstance(self.config, CropConfig):
            scale = self.side / min(size)
        elif isinstance(self.config, PadConfig):
            square = (max(size), max(size))
            side = (
                longest
                if count is None
                else native(square, longest, self.encoder.patch_size, count)[0]
            )
            scale = side / max(size)
        elif count is None:
            return longest, longest
        else:
            return native(size, longest, self.encoder.patch_size, count)
        return width * scale, height * scale

    def slot(self, size: tuple[int, int]) -> Slot:
        longest, count = self._limits()
        if isinstance(self.config, PadConfig):
            size = (max(size), max(size))
        if isinstance(self.config, CropConfig):
            grid = self.grid(self.side, self.side)
        elif count is None:
            grid = self.grid(longest, longest)
        else:
            grid = self.grid(*native(size, longest, self.encoder.patch_size, count))
        tokens = self.tokens(grid)
        return Slot(self.placeholders(tokens), None, grid, np.arange(tokens))

    def _limits(self) -> tuple[int, int | None]:
        """Pixels of the longer side and, where the aspect is kept, the number of patches."""
        if isinstance(self.config, NativeConfig):
            count = self.config.max_num_patches
            return count * self.encoder.patch_size, count
        return self.encoder.image_size, self.encoder.max_patches
