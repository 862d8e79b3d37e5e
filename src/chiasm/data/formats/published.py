"""Published data sets whose records name their images by an id, or whose answers stand in another
file: declared here, so that their files are read as they are published.

Where images stand is told by their names: beside the file or in one of FOLDERS, also of the folder
above an `annotations` folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

from chiasm.core.errors import DataError

FOLDERS = (
    "images", "imgs", "png", "image", "train2014", "val2014", "test2015", "train2017", "val2017",
    "test2017", "train_images", "documents", "flickr30k-images", "VG_100K", "VG_100K_2",
    "OCRBench_Images", "screenspot_imgs",
    "SEED-Bench-image", "infographicsvqa_images", "videos", "video", "all", "train", "val", "test",
)  # fmt: skip
"""Where images and videos of published data sets stand beside their files."""
ABOVE = ("annotations", "annotation", "annos", "questions", "qas", "json", "labels", "splits")
"""Folders of annotations: their images stand beside the folder."""
_COCO = tuple(f"COCO_{part}_{{image_id:012d}}.jpg" for part in ("train2014", "val2014", "test2015"))
_VIDEO = ("mp4", "avi", "webm", "mkv")


@dataclass(frozen=True)
class Published:
    """Records that name their media in a way of their own.

    title: of the data sets. needs: the keys by which they are known. names: how the file is called,
    of the record's keys; the first that is there. media: image or video. first: the names go before
    an image's own key. rename: key, or KEY.INNER of an object -> ours.
    """

    title: str
    needs: tuple[str, ...]
    names: tuple[str, ...]
    media: str = "image"
    first: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> frozenset[str]:
        """All keys of a record that it reads."""
        fields = {field for name in self.names for _, field, *_ in Formatter().parse(name) if field}
        return frozenset((*self.needs, *fields))

    def candidates(self, row: Mapping[str, Any]) -> list[str]:
        """The names of the record's file that its keys can spell."""
        found = []
        for name in self.names:
            try:
                found.append(name.format_map(row))
            except (KeyError, ValueError, TypeError):  # an id that is no number
                continue
        return found


PUBLISHED = (
    Published("Karpathy's splits of COCO and Flickr30k", ("filename", "sentences"),
              ("{filepath}/{filename}", "{filename}"), first=True),
    Published("ScienceQA", ("image", "lecture", "split"), ("{split}/{id}/{image}", "{id}/{image}"),
              first=True),
    Published("RefCOCO, RefCOCO+, RefCOCOg", ("ref_id", "sent_ids"), _COCO, first=True,
              rename={"sentences": "expressions"}),
    Published("OCR-VQA", ("imageURL", "questions"), ("{id}.jpg", "{id}.png", "{id}.gif"),
              first=True),
    Published("Visual Genome's questions", ("id", "qas"), ("{id}.jpg",)),
    Published("SEED-Bench", ("data_id", "question"),
              ("{data_id}", "{data_id}.jpg", "{data_id}.png", "{data_id}.jpeg")),
    Published("GQA", ("imageId",), ("{imageId}.jpg",),
              rename={"types.structural": "category"}),
    Published("VQAv2, OK-VQA, A-OKVQA, TextVQA, Visual Genome", ("image_id",),
              (*_COCO, "{image_id:012d}.jpg", "{image_id}.jpg", "{image_id}.png", "{image_id}")),
    Published("MSRVTT-QA, MSVD-QA", ("video_id",),
              tuple(f"{stem}{{video_id}}.{kind}" for kind in _VIDEO for stem in ("video", "")),
              "video"),
    Published("ActivityNet-QA and others", ("video_name",),
              ("{video_name}", *(f"{stem}{{video_name}}.{kind}" for kind in _VIDEO
                                 for stem in ("", "v_"))), "video"),
)  # fmt: skip


@lru_cache(4096)
def published_of(keys: frozenset[str]) -> Published | None:
    """What records of these keys are, where they are declared."""
    return next((one for one in PUBLISHED if keys.issuperset(one.needs)), None)


class Finder:
    """Where the media of a data set stand. One look at the disk where the first is found beside the
    file; where they stand elsewhere, a look each.

    also: a folder that is looked through as well; what is nowhere is then missed when it is opened,
    not when it is named.
    """

    def __init__(self, also: Path | None = None) -> None:
        self._folder: dict[Path, Path] = {}
        self._also = () if also is None else (also,)

    def beside(self, root: Path) -> bool:
        """The first file was found in `root` itself."""
        known = self._folder.get(root)
        return known is root or known == root

    def file(self, root: Path, name: str) -> Path:
        """root/name, or the same name in one of FOLDERS where it is not there but here."""
        return self.first(root, (name,)) or root / name

    def first(self, root: Path, names: Sequence[str]) -> Path | None:
        """The first of several names that is there."""
        known = self._folder.get(root)
        places = [place for start in (root, *self._also) for place in _folders(start)]
        for folder in (known, *places) if known else places:
            for name in names:
                path = folder / name
                if path.is_file():
                    self._folder[root] = root if folder == root else folder
                    return path
        return self._also[0] / names[0] if self._also and names else None


@lru_cache(256)
def _folders(root: Path) -> tuple[Path, ...]:
    roots = (root, root.absolute().parent) if root.absolute().name in ABOVE else (root,)
    inner = [place / name for place in roots for name in FOLDERS]
    deeper = [folder / name for folder in inner[:1] for name in ("train", "val", "test")]
    return (root, *(f for f in (*inner, *deeper, roots[-1]) if f != root and f.is_dir()))


# Answers in another file


@dataclass(frozen=True)
class Join:
    """Two files of which one has the questions and the other one the answers.

    file: a pattern of the first one's name, other: the other one's name of it. on: the key of the
    first one, key: of the other one.
    """

    title: str
    file: re.Pattern[str]
    other: str
    on: str
    key: str

    def beside(self, file: Path) -> Path | None:
        """The file that belongs to the first one, where it is there."""
        found = self.file.fullmatch(file.name)
        other = file.with_name(found.expand(self.other)) if found else None
        return other if other is not None and other.is_file() else None


JOINS = (
    Join("VQAv2, OK-VQA",
         re.compile(r"(.*?)(?:OpenEnded_|MultipleChoice_)?(mscoco_.*)questions(.*)"),
         r"\1\2annotations\3", "question_id", "question_id"),
    Join("MSRVTT-QA of Video-ChatGPT", re.compile(r"(.*)_q(\.json)"), r"\1_a\2", "question_id",
         "question_id"),
    Join("RefCOCO", re.compile(r"refs.*\.json"), "instances.json", "ann_id", "id"),
)  # fmt: skip


def joined_with(file: Path) -> tuple[Join, Path, Path] | None:
    """(how, the file of questions, that of answers) of either of two files that belong together."""
    for join in JOINS:
        if other := join.beside(file):
            return join, file, other
        if join.on == join.key and (first := _questions(file, join)):
            return join, first, file
    return None


def _questions(file: Path, join: Join) -> Path | None:
    """The file to which the answers in `file` belong."""
    if not any(word in file.stem for word in ("annotations", "_a", "instances")):
        return None
    return next((f for f in file.parent.glob(f"*{file.suffix}") if join.beside(f) == file), None)


def is_answers(file: Path) -> bool:
    """A file that is read with the one it belongs to, not on its own."""
    return any(_questions(file, join) for join in JOINS)


Record = tuple[str, Any]


def joined(join: Join, questions: Iterable[Record], answers: Iterable[Record]) -> Iterator[Record]:
    """The records of the first file with what the other one says of them. A question that the other
    file does not have is a bad record."""
    known = {row.get(join.key): row for _, row in answers if isinstance(row, dict)}
    for where, row in questions:
        if not isinstance(row, dict):
            yield where, row
        elif (other := known.get(row.get(join.on))) is None:
            yield where, DataError(f"no record of {join.on} {row.get(join.on)} in the file beside")
        else:
            yield where, {k: v for k, v in other.items() if k != join.key} | row
