"""OpenAI messages as JSONL: one conversation a line, its images as files in the same folder.

    {"id": "7", "images": ["images/7.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which animal?"}]},
        {"role": "assistant", "content": "A cat."}], "independent": false, "meta": {}}

The n-th image part of a line stands for the n-th entry of its `images`, the n-th video part for
the n-th of `videos`. Paths are relative to the folder of the file and stay inside it. A message
with "loss": false is read, not learnt; a text part with "box" is a box of the image, as fractions.
"rejected" holds the worse reply of a preference pair, whose image parts stand for the entries of
`images` after those of the messages; "desired" says whether the reply is a good one (KTO).
Lines of any other form that rows.py knows are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chiasm.core.config import nearest
from chiasm.core.errors import DataError
from chiasm.core.sample import BoxText, Image, Message, Part, Sample, Text, Video
from chiasm.data.formats.media import Appearing, image_file, video_file
from chiasm.data.formats.reading import OnError, Reading, folder_name, json_lines, samples
from chiasm.data.formats.rows import sample_of

TRAIN = "train.jsonl"


def read_messages(
    path: Path,
    on_error: OnError | None = None,
    images: Path | None = None,
    reading: Reading | None = None,
) -> list[Sample]:
    """The conversations of a .jsonl file, or of a folder's train.jsonl or only .jsonl.

    Images are not opened; their paths are relative to `images`, or to the file's folder. meta
    gets "where" ("train.jsonl:17"); blank lines are skipped. Raises DataError for the first bad
    line, or gives each to on_error and reads on.
    """
    file = find_jsonl(path)
    source = folder_name(file)
    reading = reading or Reading(on_error, images)

    def make(row: dict, where: str) -> Sample:
        return sample_of(row, reading.root(file.parent), source, where, reading)

    return list(samples(json_lines(file), make, source, reading.on_error))


def write_messages(written: Iterable[Sample], path: Path) -> None:
    """Write conversations so that read_messages gives them back; the file appears only whole.

    Files inside the folder of `path` are named where they are; other images are saved once, by
    content, under images/ (decoded ones as PNG), other clips under videos/.
    """
    with Appearing(path) as temporary, temporary.open("wb") as file:
        for sample in written:
            images = [image_file(image, path.parent) for image in sample.all_images]
            videos = [video_file(video, path.parent) for video in videos_of(sample)]
            file.write(json_line(sample, images, videos) + b"\n")


def find_jsonl(path: Path) -> Path:
    """The file a path means: itself, or in a folder train.jsonl or the only .jsonl."""
    if not path.exists():
        raise missing(path)
    if path.is_file():
        if path.suffix != ".jsonl":
            raise DataError(f"{path}: not a .jsonl file; give a .jsonl file or the folder of one")
        return path
    if (path / TRAIN).is_file():
        return path / TRAIN
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = f"no {TRAIN} but {', '.join(f.name for f in found)}" if found else "no .jsonl file"
        raise DataError(f"{path}: holds {names}; name one .jsonl file")
    return found[0]


def missing(path: Path, others: tuple[str, ...] = ()) -> DataError:
    """The error for a path that does not exist, naming what stands there with the nearest name."""
    part = path
    while not part.parent.is_dir() and part != part.parent:
        part = part.parent
    names = [*others, *(p.name for p in part.parent.iterdir())]
    remedy = nearest(part.name, names) or "; give a .jsonl file or the folder of one"
    return DataError(f"{path}: no such file or folder{remedy}")


# Writing


def json_line(sample: Sample, images: list[str], videos: list[str]) -> bytes:
    """The sample as one line of JSON, its media under the given names. Raises DataError if its
    meta is not JSON."""
    row: dict[str, Any] = {
        "id": sample.id,
        "images": images,
        "videos": videos,
        "messages": list(map(_turn_row, sample.turns)),
        "rejected": list(map(_turn_row, sample.rejected)),
        "independent": sample.independent,
        "meta": own_meta(sample),
    }
    for key in ("videos", "rejected", "independent", "meta"):
        if not row[key]:
            del row[key]
    if sample.desired is not None:
        row["desired"] = sample.desired
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{sample.where}: meta is not JSON: {error}; convert or drop it") from None
    # A lone surrogate cannot be UTF-8; as a backslash escape it is still the same JSON.
    return text.encode("utf-8", "backslashreplace")


def _turn_row(turn: Message) -> dict:
    row = {"role": turn.role, "content": [part_row(part) for part in turn.content]}
    return row if turn.supervised else row | {"loss": False}


def own_meta(sample: Sample) -> dict:
    """What the data set says about a sample, without the place it was read from."""
    return {key: value for key, value in sample.meta.items() if key != "where"}


def videos_of(sample: Sample) -> list[Video]:
    return [p for turn in sample.turns for p in turn.content if isinstance(p, Video)]


def part_row(part: Part) -> dict:
    """A part of a message's content as JSON."""
    if isinstance(part, BoxText):
        box = {"type": "text", "text": part.text, "box": list(part.box)}
        return box | ({"image_number": part.image} if part.image else {})
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, Image) else "video"}
