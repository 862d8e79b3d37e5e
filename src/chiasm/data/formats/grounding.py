"""Objects of a record: names and boxes that stand in its text as <ref-object> and <bbox>.

ms-swift: {"objects": {"ref": ["a dog"], "bbox": [[left, top, right, bottom]], "bbox_type": "real",
"image_id": [0], "width": [640], "height": [480]}}, and its older list of objects. Boxes are kept as
fractions of the image and written in the model's own format (data/boxes.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import BoxText, Image
from chiasm.data.boxes import write_fractions
from chiasm.data.formats.media_value import spelt
from chiasm.data.formats.reading import encodable, show

CATEGORIES = ("category", "categories", "label", "labels", "names")
UNITS = {"real": "pixels", "norm1": "fractions", "norm1000": "thousandths"}
Ref = str


@dataclass(frozen=True)
class Box:
    """corners: (left, top, right, bottom) or (x, y) in `units` of UNITS; image: its number; size:
    (width, height) that pixels refer to, None for the image's own."""

    corners: tuple[float, ...]
    units: str = "real"
    image: int = 0
    size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Objects:
    """What the placeholders stand for, in order."""

    refs: Sequence[Ref] = ()
    boxes: Sequence[Box] = field(default_factory=tuple)


def objects_of(value: Any) -> Objects | None:
    """The objects of a record; None for a value of another kind. Raises DataError for a broken
    one."""
    if isinstance(value, str):
        value = spelt(value)
    if isinstance(value, list):
        return _older(value)
    if not isinstance(value, dict) or not isinstance(value.get("bbox"), (list, tuple)):
        return None
    refs = [encodable(ref, f"objects.ref[{i}]") for i, ref in enumerate(value.get("ref") or [])]
    units, images = _units(value.get("bbox_type")), value.get("image_id") or []
    boxes = []
    for i, corners in enumerate(value["bbox"]):
        image = int(images[i]) if i < len(images) else 0
        size = _size(value.get("width"), value.get("height"), image)
        boxes.append(Box(_corners(corners, f"objects.bbox[{i}]"), units, image, size))
    return Objects(refs, boxes)


def _older(values: list) -> Objects | None:
    """[{"caption": "a dog", "bbox": [...], "bbox_type": "real", "image": 0}, ...]"""
    if not all(isinstance(one, dict) and "bbox" in one for one in values) or not values:
        return None
    refs, boxes = [], []
    for i, one in enumerate(values):
        refs.append(encodable(one.get("caption", ""), f"objects[{i}].caption"))
        corners = _corners(one["bbox"], f"objects[{i}].bbox")
        boxes.append(Box(corners, _units(one.get("bbox_type")), int(one.get("image") or 0)))
    return Objects(refs, boxes)


def _units(value: Any) -> str:
    if value is None:
        return "real"
    if value not in UNITS:
        raise DataError(f"objects.bbox_type is {show(value)}; use {', '.join(UNITS)}")
    return value


def _corners(value: Any, entry: str, lengths: Sequence[int] = (2, 4)) -> tuple[float, ...]:
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(n, (int, float)) and not isinstance(n, bool) for n in value
    )
    if not numbers or len(value) not in lengths:
        raise DataError(f"{entry} is {show(value)}; give [left, top, right, bottom] or [x, y]")
    return tuple(float(n) for n in value)


def _size(width: Any, height: Any, image: int) -> tuple[float, float] | None:
    if width is None or height is None:
        return None
    pair = [v[min(image, len(v) - 1)] if isinstance(v, (list, tuple)) else v
            for v in (width, height)]  # fmt: skip
    return float(pair[0]), float(pair[1])


WITH_SIZES = frozenset(("segmentation", "iscrowd", "category_id", "img_filename", "area"))
"""Keys of COCO and ScreenSpot, whose boxes are left, top, width and height."""


def box_of(row: Mapping[str, Any], entry: str, value: Any) -> Box:
    """A box of a record, in fractions or in pixels of its image (of `width` and `height` where the
    record has them). Raises DataError."""
    if isinstance(value, str):
        value = spelt(value)
    corners = _corners(value, entry)
    if len(corners) == 4 and not WITH_SIZES.isdisjoint(row):
        corners = corners_of(corners, entry)
    if max(map(abs, corners)) <= 1:
        return Box(corners, "norm1")
    size = row.get("width"), row.get("height")
    known = all(isinstance(n, (int, float)) and n > 0 for n in size)
    return Box(corners, "real", 0, (float(size[0]), float(size[1])) if known else None)  # type: ignore[arg-type]


def corners_of(value: Any, entry: str) -> tuple[float, ...]:
    """(left, top, right, bottom) of COCO's [left, top, width, height]. Raises DataError."""
    left, top, width, height = _corners(value, entry, (4,))
    return left, top, left + width, top + height


def detections_of(objects: Mapping[str, Any]) -> list[list[Any]]:
    """[name, corners] of each of a record's objects, whose boxes are COCO's; none where it has no
    names or no boxes. Raises DataError for classes that are numbers: their names stand elsewhere.
    """
    boxes = objects.get("bbox") or objects.get("boxes")
    names = next((objects[key] for key in CATEGORIES if objects.get(key)), None)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        return []
    if not all(isinstance(name, str) for name in names):
        raise DataError("objects have classes by number; write their names instead")
    return [[name, corners_of(box, "objects.bbox")] for name, box in zip(names, boxes, strict=True)]


LOCATION = re.compile(r"(?:<loc\d{4}>){4}|(?:<loc_\d{1,3}>){4}")


def located(text: str) -> list[str | BoxText]:
    """A text with location tokens as texts and boxes: four of PaliGemma's <locNNNN> are top, left,
    bottom, right, 0 to 1023 (big_vision); of Florence-2's <loc_N> left, top, right, bottom in 1,000
    bins (2311.06242)."""
    pieces: list[str | BoxText] = []
    end = 0
    for found in LOCATION.finditer(text):
        numbers = [int(n) for n in re.findall(r"\d+", found[0])]
        if "_" in found[0]:
            corners = tuple((n + 0.5) / 1000 for n in numbers)
        else:
            top, left, bottom, right = (n / 1023 for n in numbers)
            corners = (left, top, right, bottom)
        pieces += [text[end : found.start()], BoxText(write_fractions(corners), corners)]
        end = found.end()
    return [piece for piece in (*pieces, text[end:]) if piece != ""]


def box_text(box: Box, images: Sequence[Image]) -> BoxText:
    """The box as text. Raises DataError where it is in pixels of an image that is not there."""
    if box.units == "norm1":
        scale = (1.0, 1.0)
    elif box.units == "norm1000":
        scale = (1000.0, 1000.0)
    else:
        scale = box.size or _size_of(box, images)
    fractions = tuple(min(max(n / scale[i % 2], 0.0), 1.0) for i, n in enumerate(box.corners))
    return BoxText(write_fractions(fractions), fractions, box.image)


def _size_of(box: Box, images: Sequence[Image]) -> tuple[float, float]:
    if not 0 <= box.image < len(images):
        raise DataError(f"a box of image {box.image}, but the record has {len(images)}")
    return images[box.image].size()
