"""One record of any of the usual shapes to a sample, told apart by the names of its columns.

Tables (parquet, Hugging Face) and the side files of tars and folders come in a few shapes only:
turns (`messages`, `conversations`, `texts`), a question with its answer, or captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, Turn, answer, question
from chiasm.data.caption import PROMPT
from chiasm.data.formats import messages
from chiasm.data.formats.conversation import Said, conversation, media_list, with_meta
from chiasm.data.formats.reading import encodable, identity, picture, show, typed

QUESTIONS = ("question", "query", "problem", "instruction")
ANSWERS = ("answer", "answers", "multiple_choice_answer", "label", "response", "output")
CAPTIONS = ("captions", "caption", "text", "txt", "sentences", "caption_0", "title")
IMAGES = ("image", "images", "jpg", "png", "img", "webp", "jpeg", "file_name")
NAMES = ("id", "question_id", "image_id", "sample_id", "index", "uid", "questionId", "key")


def sample_of(row: dict, root: Path, source: str, where: str) -> Sample:
    """The sample of a record; paths in it are relative to `root`. Raises DataError naming the
    columns when none of the shapes fits."""
    if row.get("messages") is not None:
        said = typed(row, "messages", list, [])
        if any(isinstance(m, dict) and isinstance(m.get("content"), list) for m in said):
            return messages.sample_of(row, root, source, where)
        return roles_and_contents(row, "messages", root, source, where)
    if row.get("conversations") is not None:
        return from_and_value(row, root, source, where)
    if row.get("texts") is not None:
        return _pairs(row, root, source, where)
    if (asked := _first(row, QUESTIONS)) and (replied := _first(row, ANSWERS)):
        return _question(row, asked, replied, root, source, where)
    if found := _first(row, CAPTIONS):
        return _captioned(row, found, root, source, where)
    raise DataError(
        f"columns {', '.join(map(str, row)) or 'none'}: neither turns (messages, conversations, "
        "texts), question and answer, nor a caption; rename them"
    )


def from_and_value(row: dict, root: Path, source: str, where: str) -> Sample:
    """{"conversations": [{"from": "human", "value": "<image>\\n..."}, ...], "image(s)": ...}"""
    said = [
        (f"conversations[{i}]", _get(turn, "from", "role"), _get(turn, "value", "content"))
        for i, turn in enumerate(typed(row, "conversations", list, []))
    ]
    return _told(row, said, {"conversations"}, root, source, where)


def roles_and_contents(
    row: dict, key: str, root: Path, source: str, where: str, prepend: bool = False
) -> Sample:
    """{"messages": [{"role": "user", "content": "<image>..."}, ...], "images": [...]}"""
    said = [
        (f"{key}[{i}]", _get(turn, "role", "from"), _get(turn, "content", "value"))
        for i, turn in enumerate(typed(row, key, list, []))
    ]
    return _told(row, said, {key}, root, source, where, prepend)


def _told(
    row: dict, said: list[Said], used: set[str], root: Path, source: str, where: str,
    prepend: bool = False,
) -> Sample:  # fmt: skip
    if isinstance(row.get("system"), str) and row["system"]:
        said = [("system", "system", row["system"]), *said]
    images, videos = media_list(row, "image"), media_list(row, "video")
    turns = conversation(said, images, videos, root, where, prepend=prepend)
    used = used | {"id", "system", "image", "images", "video", "videos"}
    return with_meta(turns, row, used, identity(row), source, where)


def _pairs(row: dict, root: Path, source: str, where: str) -> Sample:
    """{"images": [...], "texts": [{"user": ..., "assistant": ...}, ...]} (The Cauldron): separate
    questions about the same pictures."""
    turns: list[Turn] = []
    for i, pair in enumerate(typed(row, "texts", list, [])):
        asked = encodable(_get(pair, "user"), f"texts[{i}].user")
        replied = encodable(_get(pair, "assistant"), f"texts[{i}].assistant")
        pictures = _pictures(row, root, where) if not turns else ()
        turns += [question(*pictures, asked), answer(replied)]
    if not turns:
        raise DataError('"texts" is empty; give questions or remove the row')
    sample = with_meta(tuple(turns), row, {"texts", "images", "image"}, identity(row, *NAMES),
                       source, where)  # fmt: skip
    return sample.replace(independent=len(turns) > 2)


def _question(
    row: dict, asked: str, replied: str, root: Path, source: str, where: str
) -> Sample:  # fmt: skip
    value = row[replied]
    answers = [str(a) for a in value] if isinstance(value, (list, tuple)) else [value]
    if isinstance(answers[0] if answers else None, (int, float)):
        answers = [str(a) for a in answers]
    if not answers:
        raise DataError(f'"{replied}" is {show(value)}; give an answer or remove the row')
    words = encodable(row[asked], asked)
    more = row.get("input") if asked == "instruction" else None
    if isinstance(more, str) and more:
        words = f"{words}\n{more}"
    turns = (
        question(*_pictures(row, root, where), words),
        answer(encodable(answers[0], replied)),
    )
    sample = with_meta(turns, row, {asked, replied, "input", *IMAGES}, identity(row, *NAMES),
                       source, where)  # fmt: skip
    return sample.replace(meta={**sample.meta, "answers": answers}) if answers[1:] else sample


def _captioned(row: dict, key: str, root: Path, source: str, where: str) -> Sample:
    value = row[key]
    captions = list(value) if isinstance(value, (list, tuple)) else [value]
    pictures = _pictures(row, root, where)
    if not pictures:
        raise DataError(f"a caption but no picture in the columns {', '.join(map(str, row))}")
    name = identity(row, *NAMES)
    sample = with_meta((), row, {key, *IMAGES}, name, source, where)
    return described(pictures, captions, name, source, sample.meta)


def described(
    pictures: tuple[Image, ...], captions: list, name: str, source: str, meta: dict
) -> Sample:
    """Pictures and what they show: the first caption is the answer, all are in meta.captions."""
    captions = [encodable(c, f"caption {i + 1}").strip() for i, c in enumerate(captions)]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise DataError("an empty caption; describe the picture or remove it")
    turns = (question(*pictures, PROMPT), answer(captions[0]))
    return Sample(turns, name, source, False, {**meta, "captions": captions})


def _pictures(row: dict, root: Path, where: str) -> tuple[Image, ...]:
    key = _first(row, IMAGES)
    if key is None:  # image_1, image_2, ... or any other name of a column that holds pictures
        shown = [(name, value) for name, value in row.items() if _is_picture(value)]
        return tuple(picture(value, name, root, where) for name, value in shown)
    values = row[key] if isinstance(row[key], (list, tuple)) else [row[key]]
    return tuple(picture(v, f"{key}[{i}]", root, where) for i, v in enumerate(values))


def _is_picture(value: Any) -> bool:
    """Decoded, or as Hugging Face stores a file."""
    stored = isinstance(value, dict) and value.keys() == {"bytes", "path"} and any(value.values())
    return stored or isinstance(value, PIL.Image.Image)


def _first(row: dict, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _get(turn: Any, *keys: str) -> Any:
    if not isinstance(turn, dict):
        raise DataError(f"a turn is {show(turn)}; make it an object with {' and '.join(keys)}")
    return next((turn[key] for key in keys if turn.get(key) is not None), None)
