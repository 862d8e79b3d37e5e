"""Every format in, made and real samples: read as they are, and the same after every import."""

import base64
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.convert import convert
from chiasm.data.formats.media import image_bytes, suffix
from chiasm.data.formats.registry import NAMES, WRITERS, detect
from chiasm.data.load import load_samples, open_data
from shared_data import SHARED

Rows = list[tuple[str, bytes, str, str, str]]
"""(id, the image's file, its suffix, question, answer)"""


def saved(folder: Path, rows: Rows) -> list[str]:
    """The images as files; their names."""
    (folder / "images").mkdir(parents=True)
    names = [f"images/{name}{ending}" for name, _, ending, *_ in rows]
    for file, row in zip(names, rows, strict=True):
        (folder / file).write_bytes(row[1])
    return names


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def messages(folder: Path, rows: Rows) -> Path:
    asked = [{"type": "image"}]
    return lines(folder / "train.jsonl", [
        {"id": name, "images": [file], "messages": [
            {"role": "user", "content": [*asked, {"type": "text", "text": q}]},
            {"role": "assistant", "content": a}]}
        for (name, _, _, q, a), file in zip(rows, saved(folder, rows), strict=True)
    ])  # fmt: skip


def conversations(row: tuple) -> list[dict]:
    return [{"from": "human", "value": f"<image>\n{row[3]}"}, {"from": "gpt", "value": row[4]}]


def llava(folder: Path, rows: Rows) -> Path:
    (folder / "x.json").write_text(json.dumps([
        {"id": row[0], "image": file, "conversations": conversations(row)}
        for row, file in zip(rows, saved(folder, rows), strict=True)
    ]))  # fmt: skip
    return folder / "x.json"


def sharegpt(folder: Path, rows: Rows) -> Path:
    return lines(folder / "x.jsonl", [
        {"id": row[0], "images": [file], "conversations": conversations(row)}
        for row, file in zip(rows, saved(folder, rows), strict=True)
    ])  # fmt: skip


def said(row: tuple) -> list[dict]:
    return [
        {"role": "user", "content": f"<image>{row[3]}"},
        {"role": "assistant", "content": row[4]},
    ]


def factory(folder: Path, rows: Rows) -> Path:
    (folder / "mllm_demo.json").write_text(json.dumps([
        {"id": row[0], "images": [file], "messages": said(row)}
        for row, file in zip(rows, saved(folder, rows), strict=True)
    ]))  # fmt: skip
    return folder / "mllm_demo.json"


def swift(folder: Path, rows: Rows) -> Path:
    return lines(folder / "x.jsonl", [
        {"id": row[0], "images": [file], "messages": said(row)}
        for row, file in zip(rows, saved(folder, rows), strict=True)
    ])  # fmt: skip


def samples_of(rows: Rows) -> list[Sample]:
    return [Sample((user(Image(data), q), assistant(a)), name) for name, data, _, q, a in rows]


def by_datasets(folder: Path, rows: Rows) -> Path:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([
        {"id": name, "image": {"bytes": data, "path": None}, "question": q, "answer": a}
        for name, data, _, q, a in rows
    ])  # fmt: skip
    table.cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return folder


def parquet(folder: Path, rows: Rows) -> Path:
    pytest.importorskip("pyarrow")
    WRITERS["parquet"](samples_of(rows), folder, "train")
    return folder


def webdataset(folder: Path, rows: Rows) -> Path:
    WRITERS["webdataset"](samples_of(rows), folder, "train")
    return folder


def image_folder(folder: Path, rows: Rows) -> Path:
    lines(folder / "metadata.jsonl", [
        {"id": name, "file_name": file, "question": q, "answer": a}
        for (name, _, _, q, a), file in zip(rows, saved(folder, rows), strict=True)
    ])  # fmt: skip
    return folder


def vlmevalkit(folder: Path, rows: Rows) -> Path:
    with (folder / "Own.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "answer"])
        for name, data, _, q, a in rows:
            table.writerow([name, base64.b64encode(data).decode(), q, a])
    return folder / "Own.tsv"


def coco(folder: Path, rows: Rows) -> Path:
    files = saved(folder, rows)
    (folder / "captions_val.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": file} for i, file in enumerate(files)],
        "annotations": [{"id": i, "image_id": i, "caption": r[4]} for i, r in enumerate(rows)],
    }))  # fmt: skip
    return folder / "captions_val.json"


def plain(folder: Path, rows: Rows) -> Path:
    for name, data, ending, _, a in rows:
        (folder / f"{name}{ending}").write_bytes(data)
        (folder / f"{name}.txt").write_text(a)
    return folder


def table(folder: Path, rows: Rows) -> Path:
    files = saved(folder, rows)
    with (folder / "own.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "image_path", "question", "answer"])
        out.writerows([row[0], name, row[3], row[4]] for row, name in zip(rows, files, strict=True))
    return folder / "own.csv"


def class_folder(folder: Path, rows: Rows) -> Path:
    for i, (name, data, ending, _, _) in enumerate(rows):
        place = folder / f"class_{i}"
        place.mkdir()
        (place / f"{name}{ending}").write_bytes(data)
    return folder


SPELT: dict[str, Callable[[Path, Rows], Path]] = {
    "messages": messages, "llava": llava, "sharegpt": sharegpt, "llama-factory": factory,
    "swift": swift, "hf": by_datasets, "parquet": parquet, "webdataset": webdataset,
    "image-folder": image_folder, "vlmevalkit": vlmevalkit, "coco": coco, "plain": plain,
    "table": table,
    "class-folder": class_folder,
}  # fmt: skip
CAPTIONS = {"coco", "plain", "class-folder"}  # formats without questions


def made() -> Rows:
    random = np.random.default_rng(0)
    samples = []
    for n, words in enumerate(('red, "quoted"', "zwei\tWörter", "漢字 <b>", "a\nb")):
        image = PIL.Image.fromarray(random.integers(0, 256, (9, 7, 3), np.uint8))
        samples.append(Sample((user(Image(image), f"what, {n}?"), assistant(words))))
    return rows_of(samples)


def rows_of(samples: Sequence[Sample]) -> Rows:
    """One question and one answer of each."""
    rows = []
    for n, sample in enumerate(samples):
        data = pixels = sample.images[0]
        if isinstance(pixels.source, PIL.Image.Image):
            data = Image(image_bytes(pixels))
        asked, told = sample.turns[0].text.strip(), sample.turns[1].text.strip()
        rows.append((f"{n}", data.encoded(), suffix(data), asked, told))
    return rows


def content(sample: Sample) -> tuple:
    return (
        [turn.text for turn in sample.turns],
        [image.digest() for image in sample.images],
        sample.id,
    )


def survives(name: str, rows: Rows, folder: Path) -> None:
    source = folder / "in"
    source.mkdir()
    path = SPELT[name](source, rows)
    assert detect(path).name == name
    (found,) = open_data(str(path)).values()
    samples = list(found.samples)
    expected = [([asked, told], [Image(data).digest()]) for _, data, _, asked, told in rows]
    own = [content(sample)[:2] for sample in samples]
    if name in CAPTIONS:
        first = (lambda told: told.split("\n")[0]) if name == "plain" else str  # a line a caption
        expected = [([first(told)], digests) for (_, told), digests in expected]
        own = [(texts[1:], digests) for texts, digests in own]
    if name == "class-folder":
        expected = [([f"class {i}"], digests) for i, (_, digests) in enumerate(expected)]
    assert own == expected
    for to in WRITERS:
        if to == "parquet":
            pytest.importorskip("pyarrow")
        convert(str(path), folder / to, to)
        (written,) = open_data(str(folder / to)).values()
        back = list(written.samples)
        assert [content(one) for one in back] == [content(one) for one in samples], to


def test_no_format_is_left_out():
    assert {*SPELT} == {*NAMES}


@pytest.mark.parametrize("name", SPELT)
def test_made_samples(name: str, tmp_path: Path):
    survives(name, made(), tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is not here")
@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize("data", ["photos-captions", "charts-qa", "tables-qa", "receipts",
                                  "screenshots", "cifar10-zeroshot"])  # fmt: skip
def test_shared_samples(data: str, name: str, tmp_path: Path):
    survives(name, rows_of(load_samples(str(SHARED / data), "test")[:2]), tmp_path)
