"""Rows of a table that name the image of an earlier row by its index, as MMBench's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chiasm.core.errors import DataError
from chiasm.data.formats.media_value import listed

REFERENCE = 64  # characters: a shorter `image` without a dot is another row's index


class SharedImages:
    """The images of a table's rows by their index."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def resolved(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the images it names. Raises DataError for an index of no row before."""
        row, image = dict(row), row.get("image")
        if not isinstance(image, str) or not image:
            return row
        found = [self._image(one, i) for i, one in enumerate(listed(image, "image"))]
        if "index" in row:
            self._known[str(row["index"])] = found[0]
        return {**row, "image": found}

    def _image(self, value: Any, place: int) -> Any:
        if not isinstance(value, str) or len(value) > REFERENCE or not value.isdecimal():
            return value
        if value not in self._known:
            raise DataError(f"image[{place}] is '{value}', the index of no row with an image")
        return self._known[value]
