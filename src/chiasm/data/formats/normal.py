"""A record with the same meaning under the forms' own names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chiasm.data.formats import forms
from chiasm.data.formats.documents import document_of, marked_messages
from chiasm.data.formats.forms import Key, form_of
from chiasm.data.formats.grounding import detections_of
from chiasm.data.formats.media_value import spelt
from chiasm.data.formats.preference import openai_pair
from chiasm.data.formats.published import Published, published_of

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

LISTS = ("messages", "conversations", "conversation", "texts")
"""Keys whose lists tables hold as text."""
REWRITTEN = frozenset(
    ("body", "input", "preferred_output", "prompt", "text", "text_info", "text_list", "texts",
     "objects", "label")
)  # fmt: skip


def normal(values: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A record without cells that hold nothing, its columns under the names of `columns` (what ->
    column), its body unwrapped, its messages as lists."""
    row = {
        key: value
        for key, value in values.items()
        if key is not None and not (type(value) in (float, dict) and _nothing(value))
    }
    for what, column in (columns or {}).items():
        value = row.pop(column, None)
        for name in COLUMNS[what].names:
            row.pop(name, None)
        row[COLUMNS[what].names[0]] = value
    for name in LISTS:
        if type(row.get(name)) is str and isinstance(found := spelt(row[name]), list):
            row[name] = found
    if not REWRITTEN.isdisjoint(row):
        return _rewritten(row)
    if (published := published_of(frozenset(row))) and published.rename:
        _rename(row, published)
    return row


def _rewritten(row: dict[str, Any]) -> dict[str, Any]:
    """A record that has one of the keys whose meaning depends on their values."""
    openai_pair(row)
    body = row.get("body")
    if isinstance(body, Mapping) and "messages" in body:  # a line of an OpenAI batch file
        return normal({"id": row.get("custom_id"), "messages": body["messages"]})
    if is_messages(row.get("prompt")):
        completion = row.pop("completion", None)
        said = completion if is_messages(completion) else _assistant(completion)
        row["messages"] = [*row.pop("prompt"), *said]
    if isinstance(row.get("text_info"), list) and "image_info" in row:
        row["messages"] = marked_messages(row.pop("text_info"), row.pop("image_info"))
    if found := document_of(row):
        row = {"document": found[0], **{k: v for k, v in row.items() if k not in found[1]}}
    if (published := published_of(frozenset(row))) and published.rename:
        _rename(row, published)
    _name_by_meaning(row)
    return row


def _rename(row: dict[str, Any], published: Published) -> None:
    for name, own in published.rename.items():
        outer, _, inner = name.partition(".")
        value = row.pop(outer, None)
        row[own] = value.get(inner) if inner and isinstance(value, Mapping) else value


def _nothing(value: Any) -> bool:
    """NaN and a struct of nothing, as tables store missing cells."""
    if isinstance(value, float):
        return math.isnan(value)
    stored = isinstance(value, dict) and bool(value) and value.keys() <= {"bytes", "path"}
    return stored and not any(value.values())


def is_messages(value: Any) -> bool:
    """A list of objects, as messages are."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _assistant(text: Any) -> list[dict]:
    return [] if text is None else [{"role": "assistant", "content": text}]


def is_truth(value: Any) -> bool:
    """A label that says whether something is true."""
    return str(value).lower() in ("0", "1", "true", "false")


def _name_by_meaning(row: dict[str, Any]) -> None:
    """`text` that asks beside an answer is a question; `prompt` beside an image alone a caption;
    `objects` without a text what is to be detected."""
    if isinstance(row.get("objects"), Mapping) and form_of(row) is None:
        found = detections_of(row["objects"])
        if found:
            row["detections"] = found
            del row["objects"]
    if "label" in row and not forms.QUESTION_NAMES & row.keys() and is_truth(row["label"]):
        name = "caption" if "relation" in row else "sentence"
        if isinstance(row.get(name), str):
            row["statement"] = row.pop(name)
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
