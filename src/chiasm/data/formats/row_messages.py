"""The messages of a record, whatever keys they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chiasm.core.errors import DataError
from chiasm.data.formats import forms
from chiasm.data.formats.conversation import Said
from chiasm.data.formats.forms import Row
from chiasm.data.formats.reading import Place, show

PLAIN = {frozenset(names): names for names in (("role", "content"), ("from", "value"))}
"""Messages without any other key."""


def said_of(values: Sequence[Any], name: str, place: Place) -> list[Said]:
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
    asked, replied, before, system, _ = (row.find(key) for key in forms.PAIR)
    _count_left(row, f"{entry.partition('[')[0]}[]", place)
    said = [Said(f"{entry}.system", "system", system[1])] if system and system[1] else []
    for found, names, role in ((asked, forms.PAIR[0].names, "user"),
                               (replied, forms.PAIR[1].names, "assistant")):  # fmt: skip
        name, text = found or (names[0], None)
        if role == "user" and before and before[1]:
            text = f"{before[1]}\n{text}" if text else before[1]
        said.append(Said(f"{entry}.{name}", role, text))
    return said


def _count_left(row: Row, entry: str, place: Place) -> None:
    left = row.left()
    for name in left:
        place.reading.unused[f"{entry}.{name}"] += 1
    if left and place.reading.strict:
        raise DataError(
            f"keys of {entry} that are not used: {', '.join(map(str, left))}; remove them or read "
            "without --strict"
        )
