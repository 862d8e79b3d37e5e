"""One record of any form (forms.py) to one sample."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, Text, Turn, answer, question
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
from chiasm.data.formats.forms import FORMS, Form, Key, Row
from chiasm.data.formats.grounding import fractions_of, objects_of
from chiasm.data.formats.media_value import is_image, is_video, listed, spelt
from chiasm.data.formats.preference import (
    REJECTED,
    check_same_prompt,
    desired_of,
    openai_pair,
    pair,
    rejected_images,
)
from chiasm.data.formats.reading import Place, Reading, encodable, identity, shortened, show, typed

EMPTY = "(empty replies)"
PLAIN = {frozenset(names): names for names in (("role", "content"), ("from", "value"))}
"""Messages without any other key."""
COLUMNS: dict[str, Key] = {
    "question": forms.QUESTION,
    "answer": forms.ANSWER,
    "image": forms.IMAGES,
    "options": forms.OPTIONS,
    "category": forms.CATEGORY,
    "id": forms.ID,
    "box": forms.BOX,
    "caption": forms.CAPTION,
}
"""What a column can be said to be, and the names that are looked for otherwise."""


def sample_of(
    values: Mapping[str, Any], root: Path, source: str, where: str, reading: Reading | None = None
) -> Sample:
    """The sample of a record; paths in it are relative to `root`. Raises DataError naming the
    columns where no form fits, and for keys that are not used where the reading is strict."""
    place = Place(root, source, where, reading or Reading())
    place.reading.check_columns(values)
    row = Row(normal(values, place.reading.columns))
    form = form_of(row.values)
    if form is None:
        raise DataError(
            f"columns {shortened(', '.join(map(str, values)), 200) or 'none'}: neither turns "
            "(messages, conversations, texts), question and answer, nor a caption; rename them"
        )
    turns, meta = MAKERS[form.name](row, place)
    rejected: tuple[Turn, ...] = meta.pop(REJECTED, ())
    desired = desired_of(row)
    independent = typed(row.values, "independent", bool, None)
    row.used.add("independent")
    sample = Sample(
        turns,
        identity({"id": row.get(forms.ID)}),
        source,
        _separate(form, turns) if independent is None else independent,
        _meta(row, place) | meta | {"where": where},
        rejected,
        desired,
    )
    _check_left(row, place)
    if empty := sum(map(_says_nothing, turns)):
        place.reading.unused[EMPTY] += empty
    return sample


def _says_nothing(turn: Turn) -> bool:
    """An assistant's message that is learnt and holds nothing."""
    if turn.role != "assistant" or not turn.supervised:
        return False
    return not turn.text.strip() and all(isinstance(part, Text) for part in turn.parts)


def form_of(values: Mapping[str, Any]) -> Form | None:
    """The first form whose keys a normal record has."""
    return next((form for form in FORMS if form.fits(values)), None)


def _separate(form: Form, turns: Sequence[Turn]) -> bool:
    return form.name == "texts" and len(turns) > 2


# A record with the same meaning under the forms' own names


def normal(values: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A record without cells that hold nothing, its columns under the names of `columns` (what ->
    column), its body unwrapped, its messages as lists."""
    row = {key: value for key, value in values.items() if key is not None and not _nothing(value)}
    for what, column in (columns or {}).items():
        value = row.pop(column, None)
        for name in COLUMNS[what].names:
            row.pop(name, None)
        row[COLUMNS[what].names[0]] = value
    openai_pair(row)
    body = row.get("body")
    if isinstance(body, Mapping) and "messages" in body:  # a line of an OpenAI batch file
        return normal({"id": row.get("custom_id"), "messages": body["messages"]})
    for name in ("messages", "conversations", "conversation", "texts"):
        if isinstance(row.get(name), str) and isinstance(spelt(row[name]), list):
            row[name] = spelt(row[name])
    if _listed(row.get("prompt")):
        completion = row.pop("completion", None)
        said = completion if _listed(completion) else _assistant(completion)
        row["messages"] = [*row.pop("prompt"), *said]
    _name_by_meaning(row)
    return row


def _nothing(value: Any) -> bool:
    """NaN and a struct of nothing, as tables store missing cells."""
    if isinstance(value, float):
        return math.isnan(value)
    stored = isinstance(value, dict) and bool(value) and value.keys() <= {"bytes", "path"}
    return stored and not any(value.values())


def _listed(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _assistant(text: Any) -> list[dict]:
    return [] if text is None else [{"role": "assistant", "content": text}]


def _name_by_meaning(row: dict[str, Any]) -> None:
    """`text` that asks beside an answer is a question; `prompt` beside an image alone a caption."""
    if "text" not in row and "prompt" not in row:
        return
    has = {key: any(row.get(name) is not None for name in key.names)
           for key in (forms.QUESTION, forms.ANSWER, forms.CHOSEN)}  # fmt: skip
    text = row.get("text")
    asks = isinstance(text, str) and "?" in text and not has[forms.QUESTION]
    if asks and (has[forms.ANSWER] or "question_id" in row):
        row["question"] = row.pop("text")
    if not isinstance(row.get("prompt"), str) or has[forms.ANSWER] or has[forms.CHOSEN]:
        return
    asks = any(row.get(name) is not None for name in forms.QUESTION.names if name != "prompt")
    if not asks and any(row.get(name) is not None for name in (*forms.IMAGES.names, "A")):
        row.setdefault("caption", row.pop("prompt"))


# Media


def _media(row: Row, place: Place) -> Media:
    images, videos = _images(row), _videos(row)
    found = row.find(forms.OBJECTS)
    objects = None if found is None else objects_of(found[1])
    if found is not None and objects is None:
        row.used.discard(found[0])
    return Media(images, videos, objects)


def _images(row: Row) -> list[tuple[str, Any]]:
    for name, value in row.every(forms.IMAGES):
        values = [] if isinstance(value, str) and value in MISSING else listed(value, name)
        if values:
            row.used.update(forms.IMAGES.names)
            return [(f"{name}[{i}]", one) for i, one in enumerate(values)]
    names = [name for name in row.left() if is_image(row.values[name])]
    row.used.update(names)
    names.sort(key=_number)
    return [(name, one) for name in names for one in listed(row.values[name], name)]


def _number(name: str) -> int:
    """image_10 after image_2; others stay in their order."""
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else 0


def _videos(row: Row) -> list[tuple[str, Any]]:
    found = row.find(forms.VIDEOS)
    if found is None:
        names = [name for name in row.left() if is_video(row.values[name])]
        row.used.update(names)
        return [(name, one) for name in names for one in listed(row.values[name], name)]
    return [(f"{found[0]}[{i}]", one) for i, one in enumerate(listed(found[1], found[0]))]


# Turns of each form, and what its meta says

Made = tuple[tuple[Turn, ...], dict[str, Any]]


def _messages(row: Row, place: Place) -> Made:
    name, values = next(row.every(forms.MESSAGES), None) or next(
        row.every(forms.CONVERSATIONS), None
    ) or next(row.every(forms.CONVERSATION))  # fmt: skip
    if not isinstance(values, (list, tuple)) or not values:
        raise DataError(f'"{name}" is {show(values)}; give the turns as a list or remove the line')
    return _told(row, _said_of(values, name, place), place)


def _said_of(values: Sequence[Any], name: str, place: Place) -> list[Said]:
    return [s for i, one in enumerate(values) for s in _said(one, f"{name}[{i}]", place)]


def _said(value: Any, entry: str, place: Place) -> list[Said]:
    """A message, or an object of a question and its answer."""
    if not isinstance(value, Mapping):
        raise DataError(f"{entry} is {show(value)}; make it an object with role and content")
    if (names := PLAIN.get(frozenset(value))) is not None:  # nearly all messages
        return [Said(entry, value[names[0]], value[names[1]])]
    row = Row(value)
    alone = not any(value.get(name) is not None for name in ("role", "from", "content", "value"))
    if alone and any(row.find(key) for key in forms.PAIR[:2]):
        return _pair(row, entry, place)
    role = row.get(forms.ROLE)
    found = row.find(forms.CONTENT)
    content = None if found is None else found[1]
    if row.get(forms.CALLS):
        raise DataError(f"{entry} calls a tool; tool calls are not read: remove the record")
    supervised = _supervised(row, entry)
    _count_left(row, f"{entry.partition('[')[0]}[]", place)
    return [Said(entry, role, content, supervised)]


def _supervised(row: Row, entry: str) -> bool:
    loss, weight = row.get(forms.LOSS), row.get(forms.WEIGHT)
    if loss is not None and loss not in (True, False):
        raise DataError(f"{entry}.loss is {show(loss)}; make it true or false")
    if weight is not None and weight not in (0, 1):
        raise DataError(f"{entry}.weight is {show(weight)}; use 0 (read only) or 1 (learnt)")
    return bool(loss is not False and loss != 0) and weight != 0


def _pair(row: Row, entry: str, place: Place) -> list[Said]:
    asked, replied, system, _ = (row.find(key) for key in forms.PAIR)
    _count_left(row, f"{entry.partition('[')[0]}[]", place)
    said = [Said(f"{entry}.system", "system", system[1])] if system and system[1] else []
    for found, names, role in ((asked, forms.PAIR[0].names, "user"),
                               (replied, forms.PAIR[1].names, "assistant")):  # fmt: skip
        name, text = found or (names[0], None)
        said.append(Said(f"{entry}.{name}", role, text))
    return said


def _texts(row: Row, place: Place) -> Made:
    values = typed(row.values, "texts", list, [])
    row.used.add("texts")
    if not values:
        raise DataError('"texts" is empty; give questions or remove the row')
    return _told(row, _said_of(values, "texts", place), place)


def _preference(row: Row, place: Place) -> Made:
    """Whole conversations, the chosen and the rejected one."""
    chosen = row.values.get("chosen")
    if not isinstance(chosen, list) or not _listed(chosen):
        raise DataError("a chosen reply without its question; name it prompt")
    row.used.add("chosen")
    return _told(row, _said_of(chosen, "chosen", place), place)


def _told(row: Row, said: list[Said], place: Place, meta: dict | None = None) -> Made:
    """The conversation with its system message and, where it ends without one, its reply."""
    system = row.get(forms.SYSTEM)
    if isinstance(system, str) and system:
        said = [Said("system", "system", system), *said]
    meta = dict(meta or {})
    if said and said[-1].role not in ("assistant", "gpt", "model", "pretrain"):
        found = row.find(forms.CHOSEN)
        if found is not None:
            said += _reply(found[1], found[0], place)
    found = row.find(forms.REJECTED)
    if found is None:
        return conversation(said, _media(row, place), place), meta
    if _listed(found[1]):
        check_same_prompt(said, _said_of(found[1], found[0], place))
    rejected, images = _reply(found[1], found[0], place), rejected_images(row)
    turns, meta[REJECTED] = pair(said, rejected, _media(row, place), images, place)
    return turns, meta


def _reply(value: Any, name: str, place: Place) -> list[Said]:
    if isinstance(value, str):
        return [Said(name, "assistant", value)]
    values = value if isinstance(value, list) else [value]
    said = _said_of(values, name, place)
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
    box = row.find(forms.BOX)
    turns, meta = _told(row, said, place, meta)
    if box is not None:
        images = [part for turn in turns for part in turn.parts if isinstance(part, Image)]
        meta["box"] = list(fractions_of(box[1], box[0], images))
    return turns, meta


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
    media = _media(row, place)
    if not media.images and not media.videos:
        raise DataError(f"a caption but no image in the columns {', '.join(map(str, row.values))}")
    captions = cleaned(texts_of(value, name))
    said = [Said(name, "user", PROMPT), Said(name, "assistant", captions[0])]
    return conversation(said, media, place), {"captions": captions}


MAKERS: dict[str, Callable[[Row, Place], Made]] = {
    "messages": _messages,
    "conversations": _messages,
    "conversation": _messages,
    "texts": _texts,
    "question": _question,
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


def described(
    images: tuple[Image, ...], captions: Sequence[Any], name: str, source: str, meta: dict
) -> Sample:
    """Images and what they show: the first caption is the answer, all are in meta.captions."""
    found = cleaned(captions)
    turns = (question(*images, PROMPT), answer(found[0]))
    return Sample(turns, name, source, False, {**meta, "captions": found})


# What is left


def _meta(row: Row, place: Place) -> dict[str, Any]:
    """What the record says of itself, and its other simple columns. Raises DataError for what
    forbids to learn it."""
    if row.get(forms.AUDIO) not in (None, "", []):
        raise DataError("the record has audio, which is not read; remove the record")
    tools = row.get(forms.TOOLS)
    if spelt(tools) if isinstance(tools, str) and spelt(tools) is not None else tools:
        raise DataError("the record offers tools; tool calls are not read: remove the record")
    own = typed(row.values, "meta", dict, {})
    row.used.add("meta")
    meta: dict[str, Any] = {}
    for key in (forms.CATEGORY, forms.KEPT):
        for name, value in row.every(key):
            if key is forms.CATEGORY and isinstance(value, str):
                meta.setdefault("category", value)
            meta[name] = value
    meta |= {name: row.values[name] for name in row.left()}
    kept = {k: v for k, v in meta.items()
            if isinstance(v, (str, int, float, bool, list)) and not _has_bytes(v)}  # fmt: skip
    return kept | own


def _has_bytes(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_bytes, value))
    return not isinstance(value, (str, int, float, bool, type(None)))


def _check_left(row: Row, place: Place) -> None:
    left = row.left()
    for name in left:
        place.reading.unused[str(name)] += 1
    if left and place.reading.strict:
        raise DataError(
            f"keys that are not used: {', '.join(map(str, left))}; remove them or read without "
            "--strict"
        )


def _count_left(row: Row, entry: str, place: Place) -> None:
    left = row.left()
    for name in left:
        place.reading.unused[f"{entry}.{name}"] += 1
    if left and place.reading.strict:
        raise DataError(
            f"keys of {entry} that are not used: {', '.join(map(str, left))}; remove them or read "
            "without --strict"
        )
