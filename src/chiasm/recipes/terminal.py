"""Images in a terminal: by its own protocol where it has one, else in coloured half blocks."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping
from typing import Literal

import numpy as np
import PIL.Image

Way = Literal["kitty", "iterm", "blocks"]

COLUMNS = 40
"""Cells that an image of half blocks is wide, at most."""

CHUNK = 4096
"""Bytes of base64 that kitty's protocol takes at once."""


def way_of(environment: Mapping[str, str], terminal: bool) -> Way | None:
    """How a terminal with these environment variables shows images; None where it cannot, or
    where output is no terminal."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not terminal or term == "dumb" or "NO_COLOR" in environment:
        return None
    # Inside tmux and screen, which hand no images through, the outer terminal's names remain.
    if "TMUX" not in environment and not term.startswith(("screen", "tmux")):
        if "kitty" in term or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else None


def escaped(image: PIL.Image.Image, way: Way) -> str:
    """What shows an image when it is printed."""
    if way == "blocks":
        return _blocks(image)
    held = io.BytesIO()
    image.save(held, "PNG")
    content = base64.b64encode(held.getvalue()).decode()
    if way == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(held.getvalue())}:{content}\x07\n"
    parts = textwrap.wrap(content, CHUNK)
    heads = [
        f"{'a=T,f=100,' if not i else ''}m={int(i + 1 < len(parts))}" for i in range(len(parts))
    ]
    told = (f"\x1b_G{head};{part}\x1b\\" for head, part in zip(heads, parts, strict=True))
    return "".join(told) + "\n"


def _blocks(image: PIL.Image.Image) -> str:
    """Two pixels a cell: the upper one is the colour of the block, the lower one that behind it."""
    width = min(COLUMNS, image.width)
    height = max(1, round(image.height * width / image.width / 2)) * 2
    pixels = np.asarray(image.convert("RGB").resize((width, height)))
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m▀"
            for (r, g, b), (x, y, z) in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"
