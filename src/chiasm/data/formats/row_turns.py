"""The conversation of a record of each form, and what its meta says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message
from chiasm.data.caption import PROMPT
from chiasm.data.formats import forms
from chiasm.data.formats.answers import (
    MISSING,
    answer_of,
    options_of,
    pairs_of,
    texts_of,
    with_options,
)
from chiasm.data.formats.conversation import Media, Said, conversation
from chiasm.data.formats.documents import document
from chiasm.data.formats.forms import Row
from chiasm.data.formats.grounding import WITH_SIZES, Box, Objects, box_of, box_text
from chiasm.data.formats.normal import is_messages
from chiasm.data.formats.preference import REJECTED, check_same_prompt, pair, rejected_images
from chiasm.data.formats.reading import Place, encodable, show
from chiasm.data.formats.row_media import media_of
from chiasm.data.formats.row_messages import said_of

TRUE = "{}\nIs this true of the image?"
LOCATE, DETECT = "Locate {} in the image.", "Detect all objects in the image."
Made = tuple[tuple[Message, ...], dict[str, Any]]


def _messages(row: Row, place: Place) -> Made:
    name, values = next(row.every(forms.MESSAGES), None) or next(
        row.every(forms.CONVERSATIONS), None
    ) or next(row.every(forms.CONVERSATION))  # fmt: skip
    if not isinstance(values, (list, tuple)) or not values:
        raise DataError(f'"{name}" is {show(values)}; give the turns as a list or remove the line')
    return _told(row, said_of(values, name, place), place)


def _texts(row: Row, place: Place) -> Made:
    name, values = row.find(forms.TEXTS) or ("texts", [])
    if not isinstance(values, (list, tuple)) or not values:
        raise DataError(f'"{name}" is {show(values)}; give a list of questions or remove the row')
    return _told(row, said_of(values, name, place), place)


def _preference(row: Row, place: Place) -> Made:
    """Whole conversations, the chosen and the rejected one."""
    chosen = row.values.get("chosen")
    if not isinstance(chosen, list) or not is_messages(chosen):
        raise DataError("a chosen reply without its question; name it prompt")
    row.used.add("chosen")
    return _told(row, said_of(chosen, "chosen", place), place)


def _told(
    row: Row,
    said: list[Said],
    place: Place,
    meta: dict | None = None,
    media: Media | None = None,
) -> Made:
    """The conversation with its system message and, where it ends without one, its reply."""
    system = row.get(forms.SYSTEM)
    if isinstance(system, str) and system:
        said = [Said("system", "system", system), *said]
    meta = dict(meta or {})
    if said and said[-1].role not in ("assistant", "gpt", "model", "pretrain"):
        found = row.find(forms.CHOSEN)
        if found is not None:
            said += _reply(found[1], found[0], place)
    media = media or media_of(row, place)
    found = row.find(forms.REJECTED)
    if found is None:
        return conversation(said, media, place), meta
    if is_messages(found[1]):
        check_same_prompt(said, said_of(found[1], found[0], place))
    rejected, images = _reply(found[1], found[0], place), rejected_images(row)
    turns, meta[REJECTED] = pair(said, rejected, media, images, place)
    return turns, meta


def _reply(value: Any, name: str, place: Place) -> list[Said]:
    if isinstance(value, str):
        return [Said(name, "assistant", value)]
    values = value if isinstance(value, list) else [value]
    said = said_of(values, name, place)
    last = next((i for i in range(len(said) - 1, -1, -1) if said[i].role == "user"), -1)
    said = said[last + 1 :]  # the prompt is repeated in it
    for one in said:
        one.role = one.role or "assistant"
    return said


def _question(row: Row, place: Place) -> Made:
    found = row.find(forms.QUESTION)
    assert found is not None  # the form fits
    name, asked = found
    if isinstance(asked, (list, tuple)):
        return _questions(row, name, asked, place)
    words = encodable(asked, name)
    if isinstance(more := row.get(forms.INPUT), str) and more:
        words = f"{words}\n{more}"
    hint = row.get(forms.HINT)
    if isinstance(hint, str) and hint not in MISSING:
        words = f"Hint: {hint}\n{words}"
    options = options_of(row)
    given = answer_of(row, options, place.reading)
    said = _history(row)
    said.append(Said(name, "user", with_options(words, options)))
    meta: dict[str, Any] = {}
    if given is not None:
        said.append(Said(name, "assistant", given.text))
        if given.references:
            meta["answers"] = list(given.references)
        if given.options:
            meta["options"] = dict(given.options)
    elif options:
        meta["options"] = options
    found = row.find(forms.BOX)
    if found is None:
        return _told(row, said, place, meta)
    box = _box(row, *found)
    media = media_of(row, place)
    if given is None and not row.there & {*forms.CHOSEN.names}:
        said.append(Said(found[0], "assistant", "<bbox>"))
        media.objects = Objects((), [box])
    turns, meta = _told(row, said, place, meta, media)
    images = [part for turn in turns for part in turn.content if isinstance(part, Image)]
    meta["box"] = list(box_text(box, images).box)
    return turns, meta


def _expressions(row: Row, place: Place) -> Made:
    """Each expression a question of its own about the image, answered by the one box."""
    (name, value), (column, corners) = row.find(forms.EXPRESSION), row.find(forms.BOX)  # type: ignore[misc]
    box, said = _box(row, column, corners), []
    for text in texts_of(value, name):
        said += [
            Said(name, "user", LOCATE.format(text.strip())),
            Said(column, "assistant", "<bbox>"),
        ]
    media = media_of(row, place)
    media.objects = Objects((), [box] * (len(said) // 2))
    turns, meta = _told(row, said, place, None, media)
    return turns, meta | {"box": list(turns[-1].content[0].box)}  # type: ignore[union-attr]


def _box(row: Row, name: str, value: Any) -> Box:
    row.used.update(WITH_SIZES)
    return box_of(row.values, name, value)


def _detections(row: Row, place: Place) -> Made:
    value = row.get(forms.DETECTIONS)
    if not _pairs_of_boxes(value):
        raise DataError(f'"detections" is {show(value)}; give [[name, box], ...]')
    boxes = [box_of(row.values, "detections", corners) for _, corners in value]
    text = "\n".join(f"{encodable(one, 'detections')} <bbox>" for one, _ in value)
    media = media_of(row, place)
    media.objects = Objects((), boxes)
    said = [Said("detections", "user", DETECT), Said("detections", "assistant", text)]
    return _told(row, said, place, None, media)


def _pairs_of_boxes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(one, (list, tuple)) and len(one) == 2 for one in value
    )  # fmt: skip


def _questions(row: Row, name: str, asked: Sequence[Any], place: Place) -> Made:
    """Lists of questions and answers of the same length: a conversation."""
    found = row.find(forms.ANSWER)
    replied = found[1] if found else None
    if not isinstance(replied, (list, tuple)) or len(replied) != len(asked) or not asked:
        raise DataError(f'"{name}" is {show(asked)}; make it a string, or as many as answers')
    said: list[Said] = []
    for i, (one, other) in enumerate(zip(asked, replied, strict=True)):
        said.append(Said(f"{name}[{i}]", "user", one))
        said.append(Said(f"answer {i}", "assistant", texts_of(other, f"answer {i}")[0]))
    return _told(row, said, place)


def _history(row: Row) -> list[Said]:
    value = row.get(forms.HISTORY)
    said: list[Said] = []
    for i, (asked, replied) in enumerate(pairs_of(value, "history") if value else []):
        said += [Said(f"history[{i}][0]", "user", asked),
                 Said(f"history[{i}][1]", "assistant", replied)]  # fmt: skip
    return said


def _caption(row: Row, place: Place) -> Made:
    found = row.find(forms.CAPTION)
    assert found is not None  # the form fits
    name, value = found
    media = media_of(row, place)
    if not media.images and not media.videos:
        raise DataError(f"a caption but no image in the columns {', '.join(map(str, row.values))}")
    if name == "caption_0" and len(media.images) > 1 and "caption_1" in row.values:
        raise DataError(
            "several captions for several images (Winoground): which belongs to which is not told "
            "by these keys; write a record for each pair"
        )
    captions = cleaned(texts_of(value, name))
    said = [Said(name, "user", PROMPT), Said(name, "assistant", captions[0])]
    return conversation(said, media, place), {"captions": captions}


def _statement(row: Row, place: Place) -> Made:
    text, label = row.get(forms.STATEMENT), str(row.get(forms.TRUTH)).lower()
    said = [
        Said("statement", "user", TRUE.format(text)),
        Said("label", "assistant", "yes" if label in ("1", "true") else "no"),
    ]
    media = media_of(row, place)
    if not media.images:
        raise DataError("a statement about an image, but no image; name it in a column image")
    return conversation(said, media, place), {}


def _document(row: Row, place: Place) -> Made:
    row.used.update(forms.ABOUT_DOCUMENT.names)
    return document(row.get(forms.DOCUMENT), place)


MAKERS: dict[str, Callable[[Row, Place], Made]] = {
    "messages": _messages,
    "conversations": _messages,
    "conversation": _messages,
    "texts": _texts,
    "document": _document,
    "question": _question,
    "expression": _expressions,
    "detections": _detections,
    "statement": _statement,
    "preference": _preference,
    "caption": _caption,
}


def cleaned(captions: Sequence[Any]) -> list[str]:
    """Captions without spaces around them and without placeholders of their images. Raises
    DataError where none is left."""
    found = [encodable(c, f"caption {i + 1}") for i, c in enumerate(captions)]
    found = [re.sub(r"<(image|video)>", "", caption).strip() for caption in found]
    found = [caption for caption in found if caption]
    if not found:
        raise DataError("an empty caption; describe the image or remove it")
    return found
