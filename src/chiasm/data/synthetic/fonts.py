"""The fonts that matplotlib ships: the same on every machine, so the same images are too."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from chiasm.core.errors import MissingExtraError

FAMILIES = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "stix": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
}
"""Regular and bold. DejaVu covers Latin, Greek, Cyrillic, Armenian and Georgian; STIX the first
three."""


@lru_cache(maxsize=128)
def font(family: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font of so many pixels an em. Raises MissingExtraError."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "synthetic", "Making images") from None
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The basic layout engine: whether Raqm is compiled in differs between builds of Pillow.
    return ImageFont.truetype(
        folder / FAMILIES[family][bold], size, layout_engine=ImageFont.Layout.BASIC
    )
