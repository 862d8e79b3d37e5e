"""A data set by its name, folder or file, in two halves that never share a sample."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa
from chiasm.data.formats.messages import TRAIN, find_jsonl, missing, read_messages
from chiasm.data.formats.reading import OnError

Split = Literal["train", "test"]

TEST = "test.jsonl"
BUILT_IN = ("easy-vqa",)


def load_samples(data: str, split: Split, on_error: OnError | None = None) -> list[Sample]:
    """One half of a data set: "easy-vqa", a folder with train.jsonl and test.jsonl, or a .jsonl.

    Where there is no test.jsonl, a tenth of the samples, chosen by id, is the test half and the
    rest is for training. Raises DataError when the path does not exist or the half is empty;
    on_error is for the bad lines, as in read_messages.
    """
    if data in BUILT_IN:
        return easy_vqa.load(split)
    path = Path(data).expanduser()
    if not path.exists():
        raise missing(path, BUILT_IN)
    file, whole = _choose(path, split)
    samples = read_messages(file, on_error)
    half = samples if whole else _divide(samples, split)
    if not half:
        raise DataError(
            f"{file}: {len(samples)} usable samples leave none for the {split} split; "
            f"add samples{'' if whole else f' or a {TEST}'}"
        )
    return half


def _choose(path: Path, split: Split) -> tuple[Path, bool]:
    """The file to read, and whether all of it belongs to the split."""
    folder = path if path.is_dir() else path.parent
    test, train = folder / TEST, _train_file(folder)
    if path.is_dir():
        path = test if split == "test" and test.is_file() else train or find_jsonl(path)
    else:
        path = find_jsonl(path)
    if path == test:
        if split == "train":
            raise DataError(f"{path}: a test set is not trained on; add {TRAIN} beside it")
        return test, True
    if path == train and test.is_file():
        return (test if split == "test" else path), True
    return path, False


def _train_file(folder: Path) -> Path | None:
    """train.jsonl, or the only .jsonl that is not test.jsonl."""
    if (folder / TRAIN).is_file():
        return folder / TRAIN
    others = [file for file in folder.glob("*.jsonl") if file.name != TEST]
    return others[0] if len(others) == 1 else None


def _divide(samples: list[Sample], split: Split) -> list[Sample]:
    """The half of a set without a test file: the last tenth in the order of the ids' hashes.

    It depends neither on the order of the lines nor on the process, and samples of one id stay
    together.
    """

    def name(sample: Sample) -> str:
        return sample.id or sample.where

    def rank(key: str) -> bytes:
        return hashlib.sha256(key.encode("utf-8", "backslashreplace")).digest()

    keys = sorted({name(sample) for sample in samples}, key=rank)
    held = set(keys[-max(1, len(keys) // 10) :])
    return [sample for sample in samples if (name(sample) in held) == (split == "test")]
