"""ms-swift JSONL: {"messages": [{"role", "content": "<image>..."}], "images": [...]}, or `query`,
`response` and `history`. Pictures that no <image> places go before the first question."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.formats import llama_factory
from chiasm.data.formats.conversation import PLACEHOLDER
from chiasm.data.formats.format import Format, Look
from chiasm.data.formats.reading import OnError, folder_name, json_records, samples, typed
from chiasm.data.formats.rows import roles_and_contents

STRAY = 0.1  # so few records of the other kind are mistakes in them, not another format


def claims(look: Look) -> bool:
    if look.file is None or look.file.suffix != ".jsonl" or llama_factory.declared(look):
        return False
    if look.any_row(lambda row: "query" in row and "response" in row):
        return True
    placed, parts = _evidence(look)
    return placed > STRAY * parts


def made_of_parts(look: Look) -> bool:
    """Turns whose content is a list of parts, as our own messages spell it."""
    placed, parts = _evidence(look)
    return parts > STRAY * placed


def _evidence(look: Look) -> tuple[int, int]:
    """(records with plain text and pictures, records with lists of parts)"""
    kinds = [_kind(row) for row in look.rows]
    return kinds.count("placed"), kinds.count("parts")


def _kind(row: dict) -> str:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return ""
    contents = [m.get("content") for m in messages if isinstance(m, dict)]
    if any(isinstance(content, list) for content in contents):
        return "parts"
    words = "".join(content for content in contents if isinstance(content, str))
    media = row.get("images") or row.get("videos")
    return "placed" if media or PLACEHOLDER.search(words) else ""


def read(path: Path, on_error: OnError | None, images: Path | None) -> Iterable[Sample]:
    file = Look(path).file or path
    root, source = images or file.parent, folder_name(file)

    def make(row: dict, where: str) -> Sample:
        if "messages" not in row:
            row = {**row, "messages": _turns(row)}
            for key in ("query", "response", "history"):
                row.pop(key, None)
        return roles_and_contents(row, "messages", root, source, where, prepend=True)

    return samples(json_records(file), make, source, on_error)


def _turns(row: dict) -> list[dict]:
    if "query" not in row:
        raise DataError(f"columns {', '.join(row)}: neither messages nor query and response")
    pairs = [*typed(row, "history", list, []), [row["query"], row.get("response")]]
    turns = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history[{i}] is not a question and its answer; make it a pair")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


FORMAT = Format("swift", "ms-swift JSONL", claims, read)
