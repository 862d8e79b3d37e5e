"""VLMEvalKit TSV: index, question, answer, the options A, B, C ..., and the picture as base64.

`image` may hold a list of pictures, or the index of an earlier row whose picture it shares;
`image_path` names files instead.
"""

from __future__ import annotations

import base64
import binascii
import json
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, answer, question
from chiasm.data.formats.conversation import with_meta
from chiasm.data.formats.format import Format, Look, files_of
from chiasm.data.formats.reading import (
    OnError,
    encodable,
    folder_name,
    picture,
    samples,
    table_rows,
)

REFERENCE = 64  # characters: a shorter `image` is another row's index, not a picture


def claims(look: Look) -> bool:
    return look.path.suffix == ".tsv" or any(name.endswith(".tsv") for name in look.names)


def read(path: Path, on_error: OnError | None, images: Path | None) -> Iterable[Sample]:
    for file in files_of(path, "*.tsv"):
        source = folder_name(file) if file.stem in ("train", "test") else file.stem
        root = images or file.parent
        known: dict[str, str] = {}

        def make(row: dict, where: str, root=root, known=known, source=source) -> Sample:
            return _sample(row, root, source, where, known)

        yield from samples(table_rows(file, "\t"), make, source, on_error)


def _sample(row: dict, root: Path, source: str, where: str, known: dict[str, str]) -> Sample:
    name = row.get("index", "")
    if image := row.get("image"):
        known[name] = image
    options = {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter)}
    pictures = tuple(_pictures(row, root, where, known))
    turns = [question(*pictures, _words(row, options))]
    if row.get("answer"):
        turns.append(answer(encodable(row["answer"], "answer")))
    used = {"index", "image", "image_path", "question", "answer", "hint", *options}
    sample = with_meta(tuple(turns), row, used, name, source, where)
    return sample.replace(meta={**sample.meta, "options": options}) if options else sample


def _words(row: dict, options: dict[str, str]) -> str:
    if not row.get("question"):
        raise DataError("no question; fill the column or remove the row")
    hint = [f"Hint: {row['hint']}"] if row.get("hint") else []
    choices = [f"{letter}. {text}" for letter, text in options.items()]
    return encodable("\n".join([*hint, row["question"], *choices]), "question")


def _pictures(row: dict, root: Path, where: str, known: dict[str, str]) -> Iterator[Image]:
    if "image" not in row:
        for i, path in enumerate(_list(row.get("image_path", ""))):
            yield picture(path, f"image_path[{i}]", root, where)
        return
    for i, text in enumerate(_list(row["image"])):
        if len(text) <= REFERENCE:
            if len(known.get(text, "")) <= REFERENCE:
                raise DataError(f"image[{i}] is '{text}', the index of no row with a picture")
            text = _list(known[text])[0]
        try:
            yield Image(base64.b64decode(text, validate=True), where)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"image[{i}] is not base64: {error}; encode it again") from None


def _list(text: str) -> list[Any]:
    if not text.startswith("["):
        return [text] if text else []
    try:
        return [str(item) for item in json.loads(text.replace("'", '"'))]
    except ValueError:
        raise DataError("image is a broken list; write it as a JSON list") from None


FORMAT = Format("vlmevalkit", "VLMEvalKit TSV", claims, read)
