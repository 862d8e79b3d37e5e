"""Every format read, told apart, and written back; the LLaVA family encoded alike."""

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chiasm.core.batch import Slot
from chiasm.core.errors import ConfigError, DataError, MissingExtraError
from chiasm.core.sample import Image, Message, Sample, Text, Video, assistant, user
from chiasm.data.convert import convert
from chiasm.data.formats import huggingface, parquet, reading
from chiasm.data.formats.messages import write_messages
from chiasm.data.formats.registry import FORMATS, NAMES, WRITERS, by_name, detect
from chiasm.data.load import load_samples, open_data
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe
from shared_data import SHARED

COLOURS = ("red", "green", "blue", "black", "white")


def png(colour: str, edge: int = 8) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (edge, edge), colour).save(buffer, "PNG")
    return buffer.getvalue()


def says(sample: Sample) -> list:
    """Everything of a sample that a round trip has to keep."""

    def content(part: Any) -> Any:
        if isinstance(part, Text):
            return part.text
        return part.digest() if isinstance(part, Image) else part.path.read_bytes()

    turns = [(turn.role, [(type(p), content(p)) for p in turn.content]) for turn in sample.turns]
    meta = {key: value for key, value in sample.meta.items() if key != "where"}
    return [sample.id, sample.independent, meta, turns]


def read(path: Path, name: str | None = None, **rest: Any) -> list[Sample]:
    (source,) = open_data(str(path), name, **rest).values()
    return list(source.samples)


def save(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def images(folder: Path) -> Path:
    for i, colour in enumerate(COLOURS):
        save(folder / f"{i}.png", png(colour))
    return folder


# The LLaVA family: one data set in five spellings

TALKS = [  # (images, system, [(question with placeholders, answer), ...])
    (["0.png"], "", [("<image>\nWhich colour?", "Red."), ("And again?", "Still red.")]),
    (["1.png"], "Be brief.", [("Which colour?\n<image>", "Green.")]),
    (["2.png", "3.png"], "", [("<image>\n<image>\nSame <colour>?", "No.")]),
    (["3.png", "4.png"], "", [("First <image> then <image>.", "Yes."), ("é 漢字\n\nok?", "ok")]),
    ([], "", [("What is 2 + 2?", "4")]),
]


def from_value(pairs: list) -> list[dict]:
    turns = []
    for asked, said in pairs:
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return turns


def role_content(system: str, pairs: list) -> list[dict]:
    turns = [{"role": "system", "content": system}] if system else []
    for asked, said in pairs:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return turns


def llava(folder: Path) -> Path:
    rows = []
    for i, (names, system, pairs) in enumerate(TALKS):
        turns = [{"from": "system", "value": system}] if system else []
        row: dict = {"id": str(i), "conversations": turns + from_value(pairs)}
        if names:
            row["image"] = names[0] if len(names) == 1 else names
        rows.append(row)
    return save(images(folder) / "llava.json", rows)


def sharegpt(folder: Path) -> Path:
    rows = [
        {"id": str(i), "conversations": from_value(pairs), "images": names, "system": system}
        for i, (names, system, pairs) in enumerate(TALKS)
    ]
    return save(images(folder) / "sharegpt.json", rows)


def factory(folder: Path) -> Path:
    rows = [
        {"id": i, "messages": role_content(system, pairs), "images": names}
        for i, (names, system, pairs) in enumerate(TALKS)
    ]
    return save(images(folder) / "mllm_demo.json", rows)


def factory_renamed(folder: Path) -> Path:
    rows = [
        {
            "id": i,
            "talk": [{"who": t["role"], "what": t["content"]} for t in role_content(system, pairs)],
            "photos": names,
        }
        for i, (names, system, pairs) in enumerate(TALKS)
    ]
    entry = {
        "file_name": "own.jsonl", "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "photos"},
        "tags": {"role_tag": "who", "content_tag": "what"},
    }  # fmt: skip
    save(folder / "dataset_info.json", {"other": {"file_name": "x"}, "mine": entry})
    return save(images(folder) / "own.jsonl", rows)


def swift(folder: Path) -> Path:
    rows = [
        {"id": str(i), "messages": role_content(system, pairs), "images": names}
        for i, (names, system, pairs) in enumerate(TALKS)
    ]
    return save(images(folder) / "swift.jsonl", rows)


class Codec:
    """Images as three placeholders with their mean colour as patches."""

    vocabulary = None
    codes_per_image = 0

    def encode(self, images):
        return [
            Slot(np.full(3, 7), np.asarray(i, np.float32).mean((0, 1))[None].repeat(3, 0), (1, 3))
            for i in images
        ]


FAMILY = {
    "llava": (llava, "LLaVA JSON"),
    "sharegpt": (sharegpt, "ShareGPT JSON"),
    "llama-factory": (factory, "LLaMA-Factory JSON"),
    "llama-factory, renamed": (factory_renamed, "LLaMA-Factory JSON"),
    "swift": (swift, "ms-swift JSONL"),
}


def test_the_llava_family_gives_identical_arrays(tmp_path: Path):
    template = RoleTemplate(train_bpe(["which colour? red green same no yes"] * 4, 320))
    processor = Processor(template, Codec())  # type: ignore[arg-type]
    expected = None
    for number, (make, title) in enumerate(FAMILY.values()):
        path = make(tmp_path / str(number))
        assert detect(path).title == title
        samples = read(path)
        assert [s.id for s in samples] == ["0", "1", "2", "3", "4"]
        encoded = [vars(processor.encode(sample)) for sample in samples]
        expected = expected or encoded
        for one, other in zip(encoded, expected, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert expected is not None
    assert len(expected[2]["image_patches"]) == 6


def test_a_placeholder_is_where_it_stands_and_its_line_break_is_none_of_the_words(tmp_path: Path):
    samples = read(llava(tmp_path))
    kinds = [[p.text if isinstance(p, Text) else "IMAGE" for p in s.turns[0].content]
             for s in samples if s.turns[0].role == "user"]  # fmt: skip
    assert kinds == [
        ["IMAGE", "Which colour?"],
        ["IMAGE", "IMAGE", "Same <colour>?"],
        ["First ", "IMAGE", " then ", "IMAGE", "."],
        ["What is 2 + 2?"],
    ]


def test_swift_query_and_unplaced_images(tmp_path: Path):
    rows = [
        {"query": "Which?", "response": "Red.", "history": [["Hi", "Hello"]], "images": ["0.png"]},
        {"query": "<image>?", "response": "Red.", "images": [{"path": "0.png"}]},
    ]
    first, second = read(save(images(tmp_path) / "q.jsonl", rows))
    assert [type(p) for p in first.turns[0].content] == [Image, Text]
    assert [t.text for t in first.turns] == ["Hi", "Hello", "Which?", "Red."]
    assert [type(p) for p in second.turns[0].content] == [Image, Text]


def test_llama_factory_alpaca(tmp_path: Path):
    rows = [{"instruction": "<image>Which?", "input": "In one word.", "output": "red",
             "system": "Be.", "history": [["a", "b"], ["c", "d"]], "images": "0.png"}]  # fmt: skip
    (sample,) = read(save(images(tmp_path) / "alpaca.json", rows))
    assert [t.text for t in sample.turns] == [
        "Be.", "a", "b", "c", "d", "Which?\nIn one word.", "red"
    ]  # fmt: skip
    assert len(sample.images) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ["0.png", "1.png"]}, "1 image part but 2 images"),
        ({"image": "../0.png"}, "a path out of the file's folder"),
        ({"image": "/etc/0.png"}, "an absolute path, '/etc/0.png'"),
        ({"image": 7}, "image[0] is 7"),
        ({"conversations": [{"from": "gpt", "value": "<image>"}]}, "no user turn"),
        ({"conversations": [{"from": "tool", "value": "<image>"}]}, 'the unknown role "tool"'),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].content is null"),
        ({"conversations": []}, '"conversations" is []; give the turns as a list'),
        ({"conversations": ["x"]}, 'conversations[0] is "x"; make it an object'),
        ({"conversations": 1}, '"conversations" is 1; give the turns as a list'),
    ],
)
def test_a_bad_record_is_named_and_the_others_are_read(tmp_path: Path, change: dict, message: str):
    good = {"id": "g", "image": "0.png", "conversations": from_value([("<image>?", "!")])}
    path = save(images(tmp_path / "set") / "x.json", [good, {**good, **change}, good])
    found: list = []
    samples = read(path, "llava", on_error=lambda *pair: found.append(pair))
    assert len(samples) == 2
    ((where, error),) = found
    assert where == "set/x.json[1]"
    assert message in str(error)
    with pytest.raises(DataError, match=r"set/x\.json\[1\]"):
        read(path, "llava")


# JSON arrays are read record by record


def test_arrays_equal_json_loads_wherever_the_chunks_end(monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: Path):  # fmt: skip
    rows = [{"a": i, "b": ["é😀", {"c": None}], "d": "x" * (i * 7)} for i in range(30)]
    for indent in (None, 2):
        path = save(tmp_path / "a.json", "\ufeff \n" + json.dumps(rows, indent=indent,
                                                                  ensure_ascii=False))  # fmt: skip
        for chunk in (5, 64, 1000, 10**6):
            monkeypatch.setattr(reading, "_CHUNK", chunk)
            assert [row for _, row in reading.json_records(path)] == rows


def test_broken_arrays_end_with_what_is_wrong(tmp_path: Path):
    for text, message in (
        (b'[{"a": 1}, {"b": }, {"c": 3}]', "not JSON from here on"),
        (b'[{"a": 1}, {"b": 2}', "not JSON from here on"),
        (b'[{"a": 1}, 7]', "expected a JSON object, found 7"),
        (b'[{"a": 1}, {"b": "\xff"}]', "not UTF-8"),
    ):
        *_, (where, last) = reading.json_records(save(tmp_path / "a.json", text))
        assert isinstance(last, DataError)
        assert message in str(last)
        assert where.startswith("a.json[")


def test_a_giant_line_is_left_out_without_being_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "LONGEST", 1000)
    monkeypatch.setattr(reading, "_CHUNK", 100)
    path = save(tmp_path / "a.jsonl", [{"a": 1}, {"b": "x" * 5000}, {"c": 3}])
    first, second, third = reading.json_lines(path)
    assert (first[1], third) == ({"a": 1}, ("a.jsonl:3", {"c": 3}))
    assert "a line of more than 1,000 bytes" in str(second[1])


# Images with captions


def test_a_table_with_a_cell_beyond_all_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "LONGEST", 1000)
    text = "file_name,text\n0.png,red\n1.png," + "x" * 5000 + "\n2.png,blue\n"
    save(images(tmp_path / "a") / "metadata.csv", text.encode())
    found: list = []
    kept = list(read(tmp_path / "a", on_error=lambda *pair: found.append(pair)))
    assert [s.turns[1].text for s in kept] == ["red", "blue"]
    assert "field larger than field limit (1000)" in str(found[0][1])


def test_coco_captions(tmp_path: Path):
    images(tmp_path / "val2017")
    whole = {
        "info": {}, "images": [{"id": 5, "file_name": "0.png"}, {"id": 6, "file_name": "1.png"},
                               {"id": 7, "file_name": "2.png"}],
        "annotations": [{"id": 1, "image_id": 5, "caption": "A red square. "},
                        {"id": 2, "image_id": 6, "caption": "Green."},
                        {"id": 3, "image_id": 5, "caption": "All red."},
                        {"id": 4, "image_id": 8, "caption": "Of no image."}, 9],
    }  # fmt: skip
    path = save(tmp_path / "annotations" / "captions_val2017.json", whole)
    found: list = []
    first, second = read(path, on_error=lambda *pair: found.append(pair))
    assert detect(path).name == "coco"
    assert first.turns[1].text == "A red square."
    assert first.meta["captions"] == ["A red square.", "All red."]
    assert (first.id, second.id) == ("5", "6")
    assert second.images[0].load().getpixel((0, 0)) == (0, 128, 0)
    assert "no caption for the image 7" in str(found[0][1])
    assert "no image 8 in the file" in str(found[1][1])
    assert "expected an object, found 9" in str(found[2][1])


def test_a_plain_folder(tmp_path: Path):
    images(tmp_path)
    save(tmp_path / "0.txt", "A red square.\n\nAll red.\n")
    save(tmp_path / "1.txt", b"\xff\xfe bad")
    save(tmp_path / "2.txt", " \n")
    save(tmp_path / "5.txt", "An image of a kind that is not read.")
    found: list = []
    (sample,) = read(tmp_path, on_error=lambda *pair: found.append(pair))
    assert (sample.id, sample.meta["captions"]) == ("0", ["A red square.", "All red."])
    messages = [str(error) for _, error in found]
    for name, words in (("1.png", "not UTF-8"), ("2.png", "an empty caption"),
                        ("3.png", "no readable 3.txt"), ("4.png", "no readable"),
                        ("5.txt", "no image of its name")):  # fmt: skip
        assert any(name in m and words in m for m in messages), (name, messages)


def test_image_folders(tmp_path: Path):
    save(images(tmp_path / "a") / "metadata.jsonl", [
        {"file_name": "0.png", "text": "red"},
        {"file_name": "1.png", "question": "Which?", "answer": "green", "level": 3},
        {"file_names": ["2.png", "3.png"], "question": "Which?", "answers": ["blue", "black"]},
    ])  # fmt: skip
    one, two, three = read(tmp_path / "a")
    assert one.turns[1].text == "red"
    assert (two.turns[0].text, two.turns[1].text, two.meta["level"]) == ("Which?", "green", 3)
    assert len(three.images) == 2
    assert three.meta["answers"] == ["blue", "black"]
    save(images(tmp_path / "b") / "metadata.csv", 'file_name,text\n0.png,"red, all of it"\n')
    assert read(tmp_path / "b")[0].turns[1].text == "red, all of it"


def test_vlmevalkit(tmp_path: Path):
    red, green = (base64.b64encode(png(colour)).decode() for colour in ("red", "green"))
    rows = [
        {"index": 1, "image": red, "question": "Which?", "A": "red", "B": "blue", "answer": "A",
         "category": "colour", "hint": "Look\nwell"},
        {"index": 2, "image": "1", "question": "Again?", "answer": "A"},
        {"index": 3, "image": json.dumps([red, green]), "question": "Both?"},
        {"index": 4, "image": "99", "question": "No?"},
        {"index": 5, "image": "!" * 80, "question": "No?"},
        {"index": 6, "image": red},
    ]  # fmt: skip
    with (tmp_path / "MyBench.tsv").open("w", newline="") as file:
        keys = ["index", "image", "question", "hint", "A", "B", "answer", "category"]
        table = csv.DictWriter(file, keys, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    found: list = []
    one, two, three = read(tmp_path / "MyBench.tsv", on_error=lambda *pair: found.append(pair))
    assert one.turns[0].text == "Hint: Look\nwell\nWhich?\nA. red\nB. blue"
    assert one.meta["options"] == {"A": "red", "B": "blue"}
    assert one.meta["category"] == "colour"
    assert (one.source, one.turns[1].text) == ("MyBench", "A")
    assert two.images[0].digest() == one.images[0].digest()
    assert len(three.images) == 2
    assert [t.role for t in three.turns] == ["user"]
    assert ["the index of no row" in str(found[0][1]), "not base64" in str(found[1][1]),
            "neither turns" in str(found[2][1])] == [True] * 3  # fmt: skip


# Tars and tables


def some(folder: Path) -> list[Sample]:
    """Samples that need everything of a format."""
    images(folder)
    return [
        Sample((user(Image(folder / "0.png"), "Which?"), assistant("Red.")), "a", "", False,
               {"n": 1, "deep": {"x": [1, None]}, "text": "é"}),
        Sample((Message("system", (Text("Brief."),)),
                user("One", Image(png("green")), "two", Image(folder / "2.png")),
                assistant(""), user("More?"), assistant("No")), "b", "", True),
        Sample((user("Words only"), assistant("漢字")), "c"),
        Sample((user(Image(PIL.Image.new("RGB", (4, 4), "teal")), "?"), assistant("x")), ""),
        Sample((user(*(Image(png(c)) for c in COLOURS), *(Image(png(c, 9)) for c in COLOURS),
                         Image(png("teal"))), assistant("11 images")), "m"),
    ]  # fmt: skip


@pytest.mark.parametrize("to", list(WRITERS))
def test_round_trips(tmp_path: Path, to: str):
    if to == "parquet":
        pytest.importorskip("pyarrow")
    samples = some(tmp_path / "src")
    write_messages(samples, tmp_path / "src" / "train.jsonl")
    write_messages(samples[:1], tmp_path / "src" / "test.jsonl")
    expected = [says(s) for s in load_samples(str(tmp_path / "src"), "train")]
    done = convert(str(tmp_path / "src"), tmp_path / "dst", to)
    assert done.counts == {"train": 5, "test": 1}
    assert [f.name for f in FORMATS.values() if f.title == done.title] == ["messages"]
    lines: list[str] = []
    for split, count in (("train", 5), ("test", 1)):
        back = load_samples(str(tmp_path / "dst"), split, say=lines.append)  # type: ignore[arg-type]
        if to == "webdataset":  # a key of a tar stands in for a missing id
            back = [s.replace(id="") if s.id.startswith("000") else s for s in back]
        assert [says(s) for s in back] == expected[:count]
    title = by_name(to).title
    assert lines == [f"detected: {title}, 5 samples (train)", f"detected: {title}, 1 sample (test)"]


def test_tars_are_cut_into_shards_and_equal_samples_make_equal_bytes(tmp_path: Path):
    samples = some(tmp_path / "src")
    for name in ("x", "y"):
        WRITERS["webdataset"](samples, tmp_path / name, "train")
    by_name("webdataset")
    from chiasm.data.formats.webdataset import write_webdataset

    write_webdataset(samples, tmp_path / "z", "train", size=2)
    assert [p.name for p in sorted((tmp_path / "z").iterdir())] == [
        f"train-{i:06d}.tar" for i in range(3)
    ]
    x, y = ((tmp_path / n / "train-000000.tar").read_bytes() for n in "xy")
    assert x == y
    assert [s.id for s in read(tmp_path / "z")] == [s.id for s in read(tmp_path / "x")]


def test_the_webdataset_library_reads_our_tars(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    samples = some(tmp_path / "src")[:1]
    WRITERS["webdataset"](samples, tmp_path / "x", "train")
    (row,) = webdataset.WebDataset(str(tmp_path / "x" / "train-000000.tar"), shardshuffle=False)
    assert row["png"] == png("red")
    assert json.loads(row["json"])["messages"][1]["content"][0]["text"] == "Red."


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            head = tarfile.TarInfo(name)
            head.size = len(data)
            file.addfile(head, io.BytesIO(data))
    return path


def test_foreign_tars(tmp_path: Path):
    talk = {"conversations": from_value([("<image>?", "Red.")]), "image": "elsewhere/0.png"}
    path = tar(tmp_path / "x.tar", {
        "a/0.png": png("red"), "a/0.txt": b"a red square", "a/0.cls": b"3",
        "a/1.json": json.dumps({"caption": "green"}).encode(), "a/1.png": png("green"),
        "b/0.json": json.dumps(talk).encode(), "b/0.png": png("red"),
        "b/1.png": png("red"),
        "b/2.json": b"{", "b/2.png": png("red"),
    })  # fmt: skip
    found: list = []
    samples = read(path, on_error=lambda *pair: found.append(pair))
    assert [s.turns[-1].text for s in samples] == ["a red square", "green", "Red."]
    assert [s.id for s in samples] == ["a/0", "a/1", "b/0"]
    assert "neither turns" in str(found[0][1])
    assert "not JSON" in str(found[1][1])
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    found.clear()
    assert read(path, on_error=lambda *pair: found.append(pair)) == []
    assert found


def test_parquet_of_others(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet_module = pytest.importorskip("pyarrow.parquet")
    image = {"bytes": png("red"), "path": "red.png"}
    tables = {
        "cauldron": [{"images": [image], "texts": [
            {"user": "Which?", "assistant": "Red.", "source": "x"},
            {"user": "Sure?", "assistant": "Yes.", "source": "x"}]}],
        "vqa": [{"image": image, "question": "Which?", "answers": ["red", "Red"], "n": 1}],
        "captions": [{"image": image, "caption": "a red square"}],
        "mmmu": [{"question": "<image 1>?", "answer": "A", "image_1": image, "image_2": image,
                  "image_3": {"bytes": None, "path": None}}],
        "llava": [{"id": "7", "image": image, "conversations": from_value([("<image>?", "!")])}],
    }  # fmt: skip
    for name, rows in tables.items():
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        parquet_module.write_table(pyarrow.Table.from_pylist(rows),
                                   folder / "train-00000-of-00001.parquet")  # fmt: skip
        (sample,) = load_samples(f"parquet:{tmp_path / name}", "test")
        assert sample.images[0].load().getpixel((0, 0)) == (255, 0, 0)
        if name == "cauldron":
            assert sample.independent
            assert len(sample.images) == 1
        if name == "mmmu":
            assert len(sample.images) == 2
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not readable from here on"):
        read(tmp_path / "bad.parquet")


def test_datasets_reads_our_parquet_and_we_read_its_folders(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    samples = some(tmp_path / "src")
    WRITERS["parquet"](samples, tmp_path / "p", "train")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "p" / "train.parquet"),
                                  cache_dir=str(tmp_path / "cache"))["train"]  # fmt: skip
    assert table[0]["images"][0].getpixel((0, 0)) == (255, 0, 0)
    table.save_to_disk(str(tmp_path / "saved"))
    expected = [says(s) for s in read(tmp_path / "p")]
    assert detect(tmp_path / "saved").name == "hf"
    assert [says(s) for s in read(tmp_path / "saved")] == expected
    streamed = open_data(f"hf:{tmp_path / 'p'}")["train"].samples
    assert [says(s) for s in streamed] == expected


def test_a_broken_folder_of_datasets_is_told(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "1?", "answer": "1"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.unlink()
    with pytest.raises(DataError, match=r"saved: .*; save the data set again"):
        read(tmp_path / "saved")


def test_a_stream_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch):
    class Hub:
        """A table of two rows that a network error ends."""

        features = None
        Image, List = type("Image", (), {}), list

        def load_dataset(self, *_, **__):
            return {"train": self}

        def __iter__(self):
            yield {"id": "a", "question": "1?", "answer": "1"}
            yield {"id": "b", "question": "2?", "answer": "2"}
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface, "_datasets", Hub)
    found: list = []
    kept, _ = huggingface.stream(
        "hf:org/name", "train", reading.Reading(lambda *pair: found.append(pair))
    )
    assert [sample.id for sample in kept] == ["a", "b"]
    ((where, error),) = found
    assert where == "org/name/row 2"
    assert "not readable from here on: reset by peer" in str(error)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(purpose: str) -> Any:
        raise MissingExtraError("pyarrow", "parquet", purpose)

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"\.\[parquet\]"):
        parquet.write_parquet([], tmp_path / "x.parquet")


def test_videos_go_into_messages_only(tmp_path: Path):
    sample = Sample((user(Video(save(tmp_path / "v.mp4", b"v")), "?"), assistant("!")), "1")
    for to in ("webdataset", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        with pytest.raises(DataError, match="holds no videos; import --to messages"):
            WRITERS[to]([sample], tmp_path / to, "train")
        assert not list((tmp_path / to).iterdir())


# Telling formats apart


def test_a_file_of_two_spellings_is_read_by_both(tmp_path: Path):
    mixed = [
        {"image": "0.png", "conversations": from_value([("<image>?", "!")])},
        {"images": ["1.png"], "conversations": from_value([("<image>?", "!")])},
    ]
    path = save(images(tmp_path) / "mixed.json", mixed)
    assert detect(path).name == "llava"
    assert len(read(path, "sharegpt")) == len(read(path, "llava")) == 2
    assert len(load_samples(f"llava:{path}", "test")) == 1


def test_what_is_no_format_says_what_is_known(tmp_path: Path):
    with pytest.raises(DataError, match="no known format; give a file or a folder of one of mess"):
        detect(tmp_path)
    save(tmp_path / "a.json", [])
    save(tmp_path / "b.json", [])
    with pytest.raises(DataError, match=r"it holds a\.json, b\.json: name one"):
        detect(tmp_path)
    with pytest.raises(ConfigError, match="unknown format 'lava'; did you mean 'llava'"):
        by_name("lava")
    assert len({*NAMES}) == len(FORMATS)


def test_images_elsewhere(tmp_path: Path):
    path = llava(tmp_path / "json")
    images(tmp_path / "photos")
    for i in range(5):
        (tmp_path / "json" / f"{i}.png").unlink()
    with pytest.raises(DataError, match="none of 4 records"):
        convert(str(save(tmp_path / "json" / "x.json", json.loads(path.read_text())[:4])),
                tmp_path / "no")  # fmt: skip
    done = convert(str(path), tmp_path / "yes", images=tmp_path / "photos")
    assert done.counts == {"train": 5}


def test_an_absolute_path_inside_the_root_is_taken(tmp_path: Path):
    rows = [{"messages": role_content("", [("<image>?", "!")]),
             "images": [str(tmp_path / "0.png")]}]  # fmt: skip
    (sample,) = read(save(images(tmp_path) / "a.jsonl", rows))
    assert sample.images[0].load().size == (8, 8)


@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is not here")
@pytest.mark.parametrize("to", list(WRITERS))
@pytest.mark.parametrize("name", ["charts-qa", "photos-captions", "receipts", "screenshots",
                                  "tables-qa", "cifar10-zeroshot"])  # fmt: skip
def test_the_shared_sets_survive(tmp_path: Path, name: str, to: str):
    if to == "parquet":
        pytest.importorskip("pyarrow")
    samples = load_samples(str(SHARED / name), "test")[:4]
    WRITERS[to](samples, tmp_path, "train")
    assert [says(s) for s in read(tmp_path)] == [says(s) for s in samples]


def test_hub_names_that_cannot_be_reached_are_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="hf:no/such: "):
        load_samples("hf:no/such", "train")
