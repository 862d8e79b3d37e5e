"""LLaMA-Factory's dataset_info.json, which names the columns of the files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chiasm.data.formats.reading import typed

INFO = "dataset_info.json"
OWN = {"prompt": "instruction", "query": "input", "response": "output"}
"""Its names of columns -> ours."""
TAGS = {"role_tag": "role", "content_tag": "content"}
ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}

Rename = Callable[[dict], dict]


def declared(file: Path) -> bool:
    """A dataset_info.json beside the file names it."""
    return _entry(file) is not None


def renaming(file: Path) -> Rename:
    """What brings the file's records under our names: nothing where no dataset_info.json names
    it. Raises DataError for a broken entry."""
    entry = _entry(file)
    if entry is None:
        return lambda row: row
    columns, tags = typed(entry, "columns", dict, {}), typed(entry, "tags", dict, {})
    keys = {tags[tag]: own for tag, own in TAGS.items() if tag in tags}
    roles = {tags[tag]: own for tag, own in ROLES.items() if tag in tags}

    def rename(row: dict) -> dict:
        row = dict(row)
        moved = {OWN.get(name, name): row.pop(column) for name, column in columns.items()
                 if column in row}  # fmt: skip
        row |= moved
        if (keys or roles) and isinstance(row.get("messages"), list):
            row["messages"] = [_message(one, keys, roles) for one in row["messages"]]
        return row

    return rename


def _message(message: Any, keys: dict[str, str], roles: dict[str, str]) -> Any:
    if not isinstance(message, dict):
        return message
    message = {keys.get(key, key): value for key, value in message.items()}
    role = next((message[key] for key in ("role", "from") if key in message), None)
    return {**message, "role": roles[role]} if role in roles else message


def _entry(file: Path) -> dict | None:
    try:
        info = json.loads((file.parent / INFO).read_bytes())
    except (OSError, ValueError):
        return None
    entries = info.values() if isinstance(info, dict) else ()
    named = (e for e in entries if isinstance(e, dict) and e.get("file_name") == file.name)
    return next(named, None)
