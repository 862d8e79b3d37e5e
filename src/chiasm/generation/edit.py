"""Images changed in part: which codes of an image are given when it is drawn again."""

from __future__ import annotations

import numpy as np
import PIL.Image

from chiasm.core.errors import DataError, NotGenerativeError
from chiasm.core.protocols import ImageCodec
from chiasm.generation.image_token_fsm import Edit, Grid


def inpaint(codec: ImageCodec, image: PIL.Image.Image, mask: PIL.Image.Image) -> Edit:
    """The image drawn anew where the mask, stretched over it, is lighter than half grey; a code
    is drawn anew if it stands for any such pixel. Raises DataError for a mask that marks nothing,
    NotGenerativeError for a codec without codes."""
    ids, grid = _codes(codec, image)
    marked = _marked(mask, grid, codec.depth)
    if not marked.any():
        raise DataError("the mask marks nothing: paint white what is to be drawn anew")
    return Edit(ids, tuple((~marked).reshape(-1).tolist()), grid)


def variation(codec: ImageCodec, image: PIL.Image.Image, share: float, seed: int) -> Edit:
    """The image with this share of its places, chosen at random, drawn anew (at least one).
    Raises DataError for a share outside (0, 1], NotGenerativeError for a codec without codes."""
    if not 0 < share <= 1:
        raise DataError(f"a share of {share} cannot be drawn anew; give more than 0, at most 1")
    ids, grid = _codes(codec, image)
    places = len(ids) // codec.depth
    fresh = np.random.default_rng(seed).permutation(places) < max(1, round(share * places))
    return Edit(ids, tuple(np.repeat(~fresh, codec.depth).tolist()), grid)


def _codes(codec: ImageCodec, image: PIL.Image.Image) -> tuple[tuple[int, ...], Grid]:
    """The image's code ids in reading order and their grid."""
    if codec.vocabulary is None:
        raise NotGenerativeError(
            "this model reads images but cannot draw them; use a unified model"
        )
    slot = codec.encode([image])[0]
    first = codec.vocabulary.first_code
    return tuple(int(i) for i in slot.input_ids if i >= first), slot.grid


def _marked(mask: PIL.Image.Image, grid: Grid, depth: int) -> np.ndarray:
    """[rows columns] bool: codes that stand for a marked pixel."""
    light = np.asarray(mask.convert("L")) > 127
    rows, columns = grid[0], grid[1] // depth
    found = np.zeros((rows, columns), bool)
    for r, top, bottom in _cells(rows, len(light)):
        for c, left, right in _cells(columns, light.shape[1]):
            found[r, c] = light[top:bottom, left:right].any()
    return found.repeat(depth, axis=1)


def _cells(count: int, pixels: int) -> list[tuple[int, int, int]]:
    """(number, first pixel, one past the last) of `count` cells over so many pixels."""
    return [(i, i * pixels // count, -(-(i + 1) * pixels // count)) for i in range(count)]
