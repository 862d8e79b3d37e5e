"""Which split a file, a folder or a data set's part belongs to, by its name."""

from __future__ import annotations

import re
from typing import Literal

Named = Literal["train", "validation", "test"]

NAMES: dict[str, Named] = {
    "train": "train", "training": "train", "trn": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "minival": "validation", "eval": "validation",
    "test": "test", "testing": "test", "testmini": "test", "testdev": "test", "testa": "test",
    "testb": "test", "restval": "train",
}  # fmt: skip
_SHARD = re.compile(r"^(\d+|of|v\d*|withqt|split|set|data|questions|annotations|balanced|gt|qa)$")
"""Words that say no more of a split: numbers of shards, versions, what the file holds."""


def split_of(name: str) -> Named | None:
    """The split of "train-00000-of-00002", "captions_val2017", "testmini" or "llava_train"; None
    for a name that says none. Only the first and the last word count, numbers of shards and years
    apart: "contest" and "my_test_of_time" name none."""
    words = [re.sub(r"\d+$", "", word) or word for word in re.split(r"[-_.\s]+", name.lower())]
    words = [word for word in words if word and not _SHARD.match(word)]
    for word in (words[:1] + words[-1:]) if words else []:
        if word in NAMES:
            return NAMES[word]
    return None
