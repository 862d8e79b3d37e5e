"""Interleaved documents: texts and images in the order of a page (OBELICS 2306.16527, MMC4
2304.06939, OmniCorpus 2406.08418, MINT-1T 2406.11271).

A document is learnt as what an assistant says unasked. Images that are not there, which the web has
lost, are left out and counted; they cost neither their document nor its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Part, Text
from chiasm.data.formats.media_value import is_address, to_image
from chiasm.data.formats.reading import Place, encodable, show

MISSING_IMAGES = "(images of documents that are not there)"
Piece = tuple[str, Any]
"""("text" or "image", what stands there)"""


def document_of(row: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]] | None:
    """The pieces of a record that is a document, and the keys they come from; None for any other
    record. Raises DataError for lists that do not fit together."""
    texts = row.get("text_list")
    if isinstance(texts, list) and "image_info" in row:
        return list(_matched(texts, row["image_info"] or [])), ("text_list", "image_info")
    texts = row.get("texts")
    if not isinstance(texts, list) or not all(isinstance(t, (str, type(None))) for t in texts):
        return None
    images = row.get("images") or [None] * len(texts)
    if not texts or not isinstance(images, list):
        return None
    if len(texts) != len(images):
        raise DataError(
            f"{len(texts)} texts but {len(images)} images: one of each place, or null; correct them"
        )
    return list(_aligned(texts, images)), ("texts", "images")


def _aligned(texts: Sequence[Any], images: Sequence[Any]) -> Iterator[Piece]:
    """OBELICS: at each place a text or an image, the other one null."""
    for text, image in zip(texts, images, strict=True):
        if image:
            yield "image", image
        if text:
            yield "text", text


def _matched(texts: Sequence[Any], infos: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """MMC4: each image stands before the sentence that it matches."""
    before: dict[int, list[Any]] = {}
    for i, info in enumerate(infos):
        place = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(place, int) or not 0 <= place < len(texts):
            raise DataError(f"image_info[{i}] is {show(info)}; matched_text_index names a sentence")
        before.setdefault(place, []).append(info)
    for i, text in enumerate(texts):
        for info in before.get(i, ()):
            name = info.get("image_name") or info.get("image_url") or info.get("raw_url")
            yield "image", name, info
        yield "text", text


def marked_messages(texts: Sequence[Any], infos: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages of ERNIEKit's records: texts with the tag "mask" are asked, "no_mask" learnt; each
    image stands before the text that it matches. Raises DataError for another tag."""
    said: list[dict[str, Any]] = []
    marks = {"mask": "user", "no_mask": "assistant"}
    bare = [one.get("text") if isinstance(one, Mapping) else one for one in texts]
    number = 0
    parts: list[dict[str, Any]] = []
    for kind, value, *_ in _matched(bare, infos):
        if kind == "image":
            parts.append({"type": "image", "image": value})
            continue
        role = marks.get(texts[number].get("tag") if isinstance(texts[number], Mapping) else "")
        if role is None:
            raise DataError(
                f"text_info[{number}] is {show(texts[number])}; its tag is mask or no_mask"
            )
        parts.append({"type": "text", "text": value})
        if said and said[-1]["role"] == role:
            said[-1]["content"] += parts
        else:
            said.append({"role": role, "content": parts})
        parts, number = [], number + 1
    return said


def document(pieces: Sequence[Any], place: Place) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """The turns of a document and what its meta says. Raises DataError for one without a text."""
    parts: list[Part] = []
    for i, (kind, value, *more) in enumerate(pieces):
        if kind == "image":
            image = _image(value, f"image {i}", place, more[0] if more else {})
            if image is None:
                place.reading.unused[MISSING_IMAGES] += 1
            else:
                parts.append(image)
            continue
        text = encodable(value, f"text {i}")
        if parts and isinstance(parts[-1], Text):
            parts[-1] = Text(f"{parts[-1].text}\n{text}")
        else:
            parts.append(Text(text))
    if not any(isinstance(part, Text) and part.text.strip() for part in parts):
        raise DataError("a document without a text; remove it")
    turns = (Message("user", ()), Message("assistant", tuple(parts)))
    return turns, {"interleaved": True, "caption": None}


def _image(value: Any, entry: str, place: Place, info: Mapping[str, Any]) -> Image | None:
    """The image of a piece; None where there is no file of it."""
    if is_address(value):
        return place.fetched(value)
    image = to_image(value, entry, place)
    if not isinstance(image.source, bytes) and not _there(image):
        url = info.get("raw_url") or ""
        return place.fetched(url) if is_address(url) else None
    return image


def _there(image: Image) -> bool:
    return not hasattr(image.source, "is_file") or image.source.is_file()  # type: ignore[union-attr]
