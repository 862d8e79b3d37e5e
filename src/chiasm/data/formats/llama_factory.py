"""LLaMA-Factory: records whose columns a dataset_info.json beside them may rename.

Its "sharegpt" records hold `messages` or `conversations` with `images`, its "alpaca" records
`instruction`, `input` and `output`; both spell pictures as <image>.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats.conversation import conversation, media_list, with_meta
from chiasm.data.formats.format import Format, Look
from chiasm.data.formats.reading import OnError, folder_name, identity, json_records, samples, typed
from chiasm.data.formats.rows import from_and_value, roles_and_contents

INFO = "dataset_info.json"
TAGS = {"role_tag": "role", "content_tag": "content"}


def claims(look: Look) -> bool:
    if look.file is None:
        return False
    array = look.file.suffix == ".json"
    return declared(look) or look.any_row(
        lambda row: ("instruction" in row and "output" in row) or (array and _strings(row))
    )


def declared(look: Look) -> bool:
    """A dataset_info.json beside the file names it."""
    return look.file is not None and _entry(look.file) is not None


def read(path: Path, on_error: OnError | None, images: Path | None) -> Iterable[Sample]:
    file = Look(path).file or path
    root, source = images or file.parent, folder_name(file)
    entry = _entry(file) or {}
    columns = typed(entry, "columns", dict, {})
    tags = typed(entry, "tags", dict, {})

    def make(row: dict, where: str) -> Sample:
        row = _renamed(row, columns, tags)
        if row.get("messages") is not None:
            return roles_and_contents(row, "messages", root, source, where)
        if row.get("conversations") is not None:
            return from_and_value(row, root, source, where)
        if "instruction" in row:
            return _alpaca(row, root, source, where)
        raise DataError(
            f"columns {', '.join(row)}: neither messages, conversations nor instruction; "
            f'map them under "columns" in {INFO}'
        )

    return samples(json_records(file), make, source, on_error)


def _strings(row: dict) -> bool:
    """Turns whose content is plain text, the placeholders in it."""
    messages = row.get("messages")
    return isinstance(messages, list) and any(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    )


def _entry(file: Path) -> dict | None:
    try:
        info = json.loads((file.parent / INFO).read_bytes())
    except (OSError, ValueError):
        return None
    entries = info.values() if isinstance(info, dict) else ()
    named = (e for e in entries if isinstance(e, dict) and e.get("file_name") == file.name)
    return next(named, None)


def _renamed(row: dict, columns: dict, tags: dict) -> dict:
    """The record under the format's own names."""
    own = {"prompt": "instruction", "query": "input", "response": "output"}
    row = dict(row)
    for name, column in columns.items():
        if column in row:
            row[own.get(name, name)] = row.pop(column)
    names = {tags.get("role_tag"): "role", tags.get("content_tag"): "content"}
    if any(names) and isinstance(row.get("messages"), list):
        row["messages"] = [
            {names.get(key, key): value for key, value in turn.items()}
            if isinstance(turn, dict)
            else turn
            for turn in row["messages"]
        ]
    return row


def _alpaca(row: dict, root: Path, source: str, where: str) -> Sample:
    asked = row["instruction"]
    if isinstance(row.get("input"), str) and row["input"]:
        asked = f"{asked}\n{row['input']}"
    said = [("instruction", "user", asked), ("output", "assistant", row.get("output"))]
    for i, pair in reversed(list(enumerate(typed(row, "history", list, [])))):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history[{i}] is not a question and its answer; make it a pair")
        said[:0] = [(f"history[{i}][0]", "user", pair[0]),
                    (f"history[{i}][1]", "assistant", pair[1])]  # fmt: skip
    if row.get("system"):
        said.insert(0, ("system", "system", row["system"]))
    turns = conversation(said, media_list(row, "image"), media_list(row, "video"), root, where)
    used = {"id", "instruction", "input", "output", "history", "system", "image", "images",
            "video", "videos"}  # fmt: skip
    return with_meta(turns, row, used, identity(row), source, where)


FORMAT = Format("llama-factory", "LLaMA-Factory JSON", claims, read)
