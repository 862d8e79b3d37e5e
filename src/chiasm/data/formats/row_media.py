"""The images, videos and objects of a record."""

from __future__ import annotations

import re
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Video
from chiasm.data.formats import forms
from chiasm.data.formats.answers import MISSING
from chiasm.data.formats.conversation import Media
from chiasm.data.formats.forms import Row
from chiasm.data.formats.grounding import objects_of
from chiasm.data.formats.media_value import is_address, is_image, is_video, listed
from chiasm.data.formats.published import Published
from chiasm.data.formats.reading import Place, show


def media_of(row: Row, place: Place) -> Media:
    images = _images(row, place)
    videos = _videos(row, place, not images)
    found = row.find(forms.OBJECTS)
    objects = None if found is None else objects_of(found[1])
    if found is not None and objects is None:
        row.used.discard(found[0])
    return Media(images, videos, objects)


def _images(row: Row, place: Place) -> list[tuple[str, Any]]:
    published = row.published
    if published is not None and published.first and (found := _named(row, published, place)):
        row.used.update(forms.IMAGES.names)
        return found
    address: list[tuple[str, Any]] = []
    for name, value in row.every(forms.IMAGES):
        values = [] if isinstance(value, str) and value in MISSING else listed(value, name)
        found = [(f"{name}[{i}]", one) for i, one in enumerate(values)]
        if found and not is_address(values[0]):
            row.used.update(forms.IMAGES.names)
            return found
        address = address or found
    names = [name for name in row.left() if is_image(row.values[name])]
    files = [name for name in names if not is_address(row.values[name])]
    if address and not files:
        return address
    if not files and published is not None and not published.first and published.media == "image":
        return _named(row, published, place, row.find(forms.VIDEOS) is None)
    names = files or names
    row.used.update(names)
    names.sort(key=_number)
    return [(name, one) for name in names for one in listed(row.values[name], name)]


def _named(row: Row, published: Published, place: Place, needed: bool = False) -> list[Any]:
    """The image or video that a record of a published data set names by an id. Raises DataError
    where it has to be there and is not."""
    row.used.update(published.keys)
    names = published.candidates(row.values)
    path = place.first(names, published.needs[0])
    if path is not None:
        make = Image if published.media == "image" else Video
        return [(names[0], make(path, place.where))]
    if needed:
        raise DataError(
            f"no {published.media} of {published.needs[0]} "
            f"{show(row.values[published.needs[0]])}: looked for {', '.join(names)} in "
            f"{place.root} and its folders of images; name the folder with --images"
        )
    return []


def _number(name: str) -> int:
    """image_10 after image_2; others stay in their order."""
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else 0


def _videos(row: Row, place: Place, alone: bool) -> list[tuple[str, Any]]:
    """alone: the record has no images."""
    found = row.find(forms.VIDEOS)
    if found is None:
        names = [name for name in row.left() if is_video(row.values[name])]
        row.used.update(names)
        published = row.published
        if not names and alone and published is not None and published.media == "video":
            return _named(row, published, place, True)
        return [(name, one) for name in names for one in listed(row.values[name], name)]
    return [(f"{found[0]}[{i}]", one) for i, one in enumerate(listed(found[1], found[0]))]
