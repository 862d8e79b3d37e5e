"""Benchmarks whose published files the data's own reader reads (data/formats/published.py): VQAv2
(1612.00837), GQA (1902.09506), TextVQA (1904.08920), DocVQA (2007.00398), ChartQA (2203.10244),
POPE (2305.10355), captions of COCO and Flickr30k (1504.00325; aclanthology Q14-1006).

Here stands only what evaluation adds: which files, what follows the question, what is the category.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.sample import Message, Sample, Text, assistant
from chiasm.data.formats.published import Finder
from chiasm.data.formats.reading import Reading
from chiasm.data.load import open_source
from chiasm.eval.tasks.definition import SHORT, Definition, asked
from chiasm.eval.tasks.rows import hub_rows, read_image

CAPTION = "Provide a one-sentence caption for the provided image."
Read = Callable[[Path, str], Iterator[Sample]]


def reader(*patterns: str, category: str = "", kind: str = "", words: str = SHORT) -> Read:
    """What reads the files of a benchmark's folder, or the hub's parquet in it.

    patterns: of files, {split} in them; those of the first that fits are read. category: the key
    that scores are reported by. kind: a pattern of file names whose group is the category instead,
    and the beginning of the ids. words: what follows a question; CAPTION stands in its place.
    """

    def read(folder: Path, split: str) -> Iterator[Sample]:
        hub = "validation" if split == "val" else split
        wanted = [f"**/{hub}-*.parquet", *(pattern.format(split=split) for pattern in patterns)]
        found = (sorted(folder.glob(pattern)) for pattern in wanted)
        files = next((files for files in found if files), None)
        if files is None:
            raise DataError(f"{folder}: holds none of {', '.join(wanted[1:])}")
        reading = Reading(finder=Finder(folder))
        number = 0
        for file in files:
            named = re.search(kind, file.name) if kind else None
            for sample in open_source([file], _format(file), reading).samples:
                if sample.meta.get("split") not in (None, split, hub):
                    continue
                yield _asked(
                    sample, named[1] if named else None, category, words, number, bool(kind)
                )
                number += 1

    return read


def _format(file: Path) -> str:
    if file.suffix == ".parquet":
        return "parquet"
    return "coco" if file.name.startswith("captions_") else "table"


def _asked(
    sample: Sample, kind: str | None, category: str, words: str, number: int, kinds: bool
) -> Sample:
    """The sample as the benchmark asks it; kinds: its id begins with its category."""
    meta, (*before, turn, reply) = dict(sample.meta), sample.turns
    found = kind or meta.get(category)
    found = found[0] if isinstance(found, list) and found else found
    meta["category"] = found.removesuffix("_test") if isinstance(found, str) else None
    if words == CAPTION:
        captions = [" ".join(c.split()) for c in meta.get("captions") or meta.get("answers") or ()]
        meta |= {"captions": captions, "answers": captions}
        text, reply = CAPTION, assistant(captions[0])
    else:
        text = turn.text + words
    parts = (*(part for part in turn.content if not isinstance(part, Text)), Text(text))
    name = sample.id or str(number)
    begin = f"{meta['category']}-" if kinds and meta["category"] else ""
    return sample.replace(
        turns=(*before, Message("user", parts), reply),
        id=f"{begin}{name}",
        meta={key: value for key, value in meta.items() if value is not None},
    )


def _read_gqa(folder: Path, split: str) -> Iterator[Sample]:
    """split: testdev or val, of the balanced questions; the hub has its images in another table."""
    rows = hub_rows(folder, split, f"{split}_balanced_instructions")
    if rows is None:
        yield from reader("**/{split}_balanced_questions.json", category="category")(folder, split)
        return
    table = hub_rows(folder, split, f"{split}_balanced_images") or []
    images = {row["id"]: read_image(row["image"], folder, f"GQA {row['id']}") for row in table}
    for row in rows:
        kind = (row.get("types") or {}).get("structural")
        words, where = row["question"] + SHORT, f"GQA {row['id']}"
        image = [images[row["imageId"]]]
        yield asked(row["id"], words, image, row["answer"], where, category=kind)


VQAV2 = Definition(
    "vqa",
    reader("**/v2_OpenEnded_mscoco_{split}2014_questions.json", category="answer_type"),
    "val",
    "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
    "lmms-lab/VQAv2",
)
GQA = Definition(
    "exact", _read_gqa, "testdev", "testdev_balanced_questions.json, images/", "lmms-lab/GQA"
)
TEXTVQA = Definition(
    "vqa",
    reader("**/TextVQA_0.5.1_{split}.json"),
    "val",
    "TextVQA_0.5.1_val.json, train_images/",
    "lmms-lab/textvqa",
)
DOCVQA = Definition(
    "anls",
    reader("**/{split}_v1.0_withQT.json", "**/{split}_v1.0.json", category="question_types"),
    "val",
    "val_v1.0_withQT.json, documents/",
    "lmms-lab/DocVQA",
)
CHARTQA = Definition(
    "relaxed",
    reader("**/{split}/{split}_*.json", category="type", kind=r"_(human|augmented)\.json"),
    "test",
    "test/test_human.json, test/test_augmented.json, test/png/",
    "lmms-lab/ChartQA",
)
POPE = Definition(
    "yes-no",
    reader("**/coco_pope_*.json", category="category", kind=r"coco_pope_(.*)\.json"),
    "test",
    "coco_pope_{random,popular,adversarial}.json, val2014/",
    "lmms-lab/POPE",
)
COCO = Definition(
    "caption",
    reader(
        "**/dataset_coco.json",
        "**/captions_val2017.json",
        "**/captions_val2014.json",
        words=CAPTION,
    ),
    "test",
    "dataset_coco.json (Karpathy) with val2014/, or captions_val2017.json with val2017/",
    "lmms-lab/COCO-Caption",
)
FLICKR = Definition(
    "caption",
    reader("**/dataset_flickr30k.json", words=CAPTION),
    "test",
    "dataset_flickr30k.json (Karpathy), flickr30k-images/",
    "lmms-lab/flickr30k",
)
