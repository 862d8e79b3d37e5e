"""An image while it is drawn: what its codes so far show."""

from __future__ import annotations

import PIL.Image

from chiasm.generation.generator import Generator
from chiasm.generation.image_token_fsm import Drawn


def sketch(respond: Generator, drawn: Drawn) -> PIL.Image.Image:
    """The whole rows of codes there are, above nothing: RGBA of the finished image's size.
    ValueError without a code."""
    if not drawn.ids:
        raise ValueError("sketch: no code is drawn yet")
    rows, columns = drawn.grid
    # The decoder wants all codes; what it makes of the filling is cut off.
    missing = rows * columns - len(drawn.ids)
    whole = next(respond.images([Drawn([*drawn.ids, *drawn.ids[-1:] * missing], drawn.grid)]))
    done = whole.crop((0, 0, whole.width, whole.height * (len(drawn.ids) // columns) // rows))
    paper = PIL.Image.new("RGBA", whole.size)
    paper.paste(done, (0, 0))
    return paper
