"""One record of any form (forms.py) to one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Sample, Text, assistant, user
from chiasm.data.caption import PROMPT
from chiasm.data.formats import forms
from chiasm.data.formats.forms import Form, Row, form_with
from chiasm.data.formats.media_value import spelt
from chiasm.data.formats.normal import normal
from chiasm.data.formats.preference import REJECTED, desired_of
from chiasm.data.formats.reading import Place, Reading, identity, shortened, typed
from chiasm.data.formats.row_turns import MAKERS, cleaned

EMPTY = "(empty replies)"


def sample_of(
    values: Mapping[str, Any], root: Path, source: str, where: str, reading: Reading | None = None
) -> Sample:
    """The sample of a record; paths in it are relative to `root`. Raises DataError naming the
    columns where no form fits, and for keys that are not used where the reading is strict."""
    place = Place(root, source, where, reading or Reading())
    place.reading.check_columns(values)
    row = Row(normal(values, place.reading.columns))
    form = form_with(row.there)
    if form is None:
        raise DataError(
            f"columns {shortened(', '.join(map(str, values)), 200) or 'none'}: neither turns "
            "(messages, conversations, texts), question and answer, nor a caption; rename them"
        )
    name = identity({"id": row.get(forms.ID)})
    row.used.update(("independent", "meta"))
    turns, meta = MAKERS[form.name](row, place)
    rejected: tuple[Message, ...] = meta.pop(REJECTED, ())
    desired = desired_of(row)
    independent = typed(row.values, "independent", bool, None)
    sample = Sample(
        turns,
        name,
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


def _says_nothing(turn: Message) -> bool:
    """An assistant's message that is learnt and holds nothing."""
    if turn.role != "assistant" or not turn.supervised:
        return False
    if turn.content and type(turn.content[0]) is Text and turn.content[0].text.strip():
        return False  # nearly all
    return not turn.text.strip() and all(isinstance(part, Text) for part in turn.content)


def _separate(form: Form, turns: Sequence[Message]) -> bool:
    return form.name in ("texts", "expression") and len(turns) > 2


def described(
    images: tuple[Image, ...], captions: Sequence[Any], name: str, source: str, meta: dict
) -> Sample:
    """Images and what they show: the first caption is the answer, all are in meta.captions."""
    found = cleaned(captions)
    turns = (user(*images, PROMPT), assistant(found[0]))
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
    own = dict(typed(row.values, "meta", dict, {}))
    meta: dict[str, Any] = {}
    for key in (forms.CATEGORY, forms.KEPT):
        for name, value in row.every(key):
            if key is forms.CATEGORY and isinstance(value, str):
                meta.setdefault("category", value)
            meta[name] = value
    meta |= {name: row.values[name] for name in row.left()}
    for name, value in meta.items():
        if isinstance(value, (str, int, float)) or (
            isinstance(value, list) and not _has_bytes(value)
        ):
            own.setdefault(name, value)
    return own


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
