"""Published forms of records: each read as a person would read it, nothing dropped in silence."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chiasm.core.batch import IGNORE
from chiasm.core.errors import DataError
from chiasm.core.sample import BoxText, Image, Sample, Text, assistant, user
from chiasm.data.blob import local
from chiasm.data.boxes import read_box, write_as, written
from chiasm.data.caption import caption_of
from chiasm.data.chat import CHATML
from chiasm.data.convert import convert
from chiasm.data.formats import forms
from chiasm.data.formats.grounding import located
from chiasm.data.formats.reading import Reading
from chiasm.data.formats.rows import sample_of
from chiasm.data.indexed import open_indexed
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.inspect.page import summary
from chiasm.data.inspect.show import show
from chiasm.data.load import load_samples, open_data
from chiasm.data.objectives import chat, moved
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine, said_of
from chiasm.data.splits import split_of
from chiasm.data.template import ChatTemplate, RoleTemplate
from chiasm.data.text import train_bpe
from chiasm.eval.conversation import questions_of
from chiasm.eval.tasks.table import prompted, read_table
from chiasm.recipes import run
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.labels import inspect_labels


def png(colour: str = "red", size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png())
    return tmp_path


def read(row: dict, folder: Path = Path(), **rest: Any) -> Sample:
    return sample_of(row, folder, "set", "x:1", Reading(**rest))


def told(sample: Sample) -> list[tuple[str, str]]:
    """(role, text) with images as the names of their files."""

    def part(one: Any) -> str:
        if isinstance(one, Text):
            return one.text
        source = one.source if isinstance(one, Image) else one.path
        return f"[{source.name if isinstance(source, Path) else 'bytes'}]"

    return [(turn.role, "".join(map(part, turn.content))) for turn in sample.turns]


def unused(row: dict, folder: Path = Path()) -> dict[str, int]:
    reading = Reading()
    sample_of(row, folder, "set", "x:1", reading)
    return dict(reading.unused)


def save(path: Path, rows: Any) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


# Keys that change meaning (issue 22, point 6)

TALK = [
    {"role": "user", "content": "<image>Find <ref-object>."},
    {"role": "assistant", "content": "<ref-object> is at <bbox>."},
]


def test_boxes_of_objects_stand_in_the_text_in_thousandths_of_the_image(folder: Path):
    row = {
        "messages": TALK,
        "images": ["a.png"],
        "objects": {"ref": ["a dog", "The dog"], "bbox": [[10, 5, 20, 20]]},
    }
    sample = read(row, folder)
    assert told(sample) == [
        ("user", "[a.png]Find a dog."),
        ("assistant", "The dog is at [250, 250, 500, 1000]."),
    ]
    (box,) = [part for part in sample.turns[1].content if isinstance(part, BoxText)]
    assert box.box == (0.25, 0.25, 0.5, 1.0)
    assert unused(row, folder) == {}


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ({"bbox": [[0.25, 0.25, 0.5, 1]], "bbox_type": "norm1"}, "[250, 250, 500, 1000]"),
        ({"bbox": [[250, 250, 500, 999]], "bbox_type": "norm1000"}, "[250, 250, 500, 999]"),
        ({"bbox": [[20, 10]]}, "[500, 500]"),
        ({"bbox": [[10, 10, 20, 20]], "width": [100], "height": [50]}, "[100, 200, 200, 400]"),
        (json.dumps({"bbox": [[20, 10, 40, 20]]}), "[500, 500, 1000, 1000]"),
        ([{"caption": "dog", "bbox": [20, 10, 40, 20]}], "[500, 500, 1000, 1000]"),
    ],
)
def test_boxes_in_any_units(folder: Path, objects: Any, text: str):
    talk = [TALK[0] | {"content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}]
    sample = read({"messages": talk, "images": ["a.png"], "objects": objects}, folder)
    assert told(sample)[1] == ("assistant", text)


def test_a_box_names_its_image(folder: Path):
    (folder / "b.png").write_bytes(png(size=(100, 100)))
    talk = [
        {"role": "user", "content": "<image><image>Where?"},
        {"role": "assistant", "content": "<bbox> and <bbox>"},
    ]
    objects = {"bbox": [[10, 10, 20, 20], [10, 10, 20, 20]], "image_id": [0, 1]}
    row = {"messages": talk, "images": ["a.png", "b.png"], "objects": objects}
    assert told(read(row, folder))[1][1] == "[250, 500, 500, 1000] and [100, 100, 200, 200]"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3]]}, "objects.bbox[0] is [1, 2, 3]"),
        ({"bbox": []}, '1 <bbox> in the text but 0 in "objects"'),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "miles"}, 'objects.bbox_type is "miles"'),
        ({"bbox": [[1, 2, 3, 4]], "image_id": [3]}, "a box of image 3, but the record has 1"),
    ],
)
def test_broken_objects_are_refused(folder: Path, objects: dict, message: str):
    talk = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "<bbox>"}]
    with pytest.raises(DataError) as caught:
        read({"messages": talk, "images": ["a.png"], "objects": objects}, folder)
    assert message in str(caught.value)


def test_objects_that_the_text_does_not_name_are_counted(folder: Path):
    row = {"image": "a.png", "caption": "dogs", "objects": {"categories": [1], "area": [3]}}
    assert unused(row, folder) == {"objects": 1}


CHAT = [{"from": "human", "value": "<image>\nWhich?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": CHAT, "image": "a.png", "chosen": {"from": "gpt", "value": "Red."},
         "rejected": {"from": "gpt", "value": "Blue."}},
        {"prompt": [{"role": "user", "content": "Which?"}], "images": ["a.png"],
         "chosen": [{"role": "assistant", "content": "Red."}],
         "rejected": [{"role": "assistant", "content": "Blue."}]},
        {"prompt": "Which?", "images": ["a.png"], "chosen": "Red.", "rejected": "Blue."},
        {"images": ["a.png"],
         "chosen": [{"role": "user", "content": "Which?"},
                    {"role": "assistant", "content": "Red."}],
         "rejected": [{"role": "user", "content": "Which?"},
                      {"role": "assistant", "content": "Blue."}]},
        {"messages": [{"role": "user", "content": "<image>Which?"},
                      {"role": "assistant", "content": "Red."}], "images": ["a.png"],
         "rejected_response": "Blue."},
        {"instruction": "<image>Which?", "input": "", "images": ["a.png"], "chosen": "Red.",
         "rejected": "Blue."},
    ],
)  # fmt: skip
def test_preference_rows_are_read_with_their_good_reply(folder: Path, row: dict):
    sample = read(row, folder)
    assert told(sample) == [("user", "[a.png]Which?"), ("assistant", "Red.")]
    assert [turn.text for turn in sample.rejected] == ["Blue."]
    assert unused(row, folder) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "Red."}, "the same reply"),
        ({"rejected": [{"role": "user", "content": "What?"},
                       {"role": "assistant", "content": "Blue."}]}, "differ before"),
        ({"rejected": [{"role": "assistant", "content": "a"},
                       {"role": "assistant", "content": "b"}]}, "is 2 messages"),
        ({"chosen": None}, "no chosen one"),
        ({"rejected_images": ["b.png"]}, "1 image part but 2 images"),
        ({"images": []}, "1 image part but 0 images"),
        ({"desired": "yes"}, "make it true or false"),
    ],
)  # fmt: skip
def test_pairs_that_are_none_are_refused(folder: Path, change: dict, message: str):
    row = {"prompt": [{"role": "user", "content": "<image>Which?"}], "images": ["a.png"],
           "chosen": "Red.", "rejected": "Blue."}  # fmt: skip
    assert read(row, folder).rejected
    with pytest.raises(DataError, match=message):
        read({key: value for key, value in (row | change).items() if value is not None}, folder)


def test_openai_preferences_are_read(folder: Path):
    row = {
        "input": {"messages": [{"role": "system", "content": "Be brief."},
                               {"role": "user", "content": "Which?"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "Red."}],
        "non_preferred_output": [{"role": "assistant", "content": "Blue."}],
    }  # fmt: skip
    sample = read(row, folder)
    assert told(sample) == [("system", "Be brief."), ("user", "Which?"), ("assistant", "Red.")]
    assert [turn.text for turn in sample.rejected] == ["Blue."]
    assert unused(row, folder) == {}
    with pytest.raises(DataError, match="offers tools"):
        read({**row, "input": {**row["input"], "tools": [{"name": "f"}]}}, folder)


@pytest.mark.parametrize("key", ["label", "kto_tag", "desired"])
def test_labels_of_replies_are_read_and_bad_replies_learnt_by_nobody_else(folder: Path, key: str):
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    assert read({"messages": talk}, folder).desired is None
    assert read({"messages": talk, key: True}, folder).desired is True
    bad = read({"messages": talk, key: False}, folder)
    assert bad.desired is False
    assert read({"prompt": "?", "completion": "!", key: False}, folder).desired is False
    with pytest.raises(DataError, match="labelled as a bad one"):
        Processor(template(), None).encode(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="labelled as a bad one"):
        questions_of(bad, 0)
    assert caption_of(bad) is None


def test_pairs_with_images_on_both_sides_survive_an_import(folder: Path):
    part = {"type": "image"}
    row = {"id": "7", "images": ["a.png", "b.png", "a.png"],
           "messages": [{"role": "user", "content": [part, {"type": "text", "text": "draw it"}]},
                        {"role": "assistant", "content": [part]}],
           "rejected": [{"role": "assistant", "content": [part, {"type": "text", "text": "no"}]}],
           "desired": True}  # fmt: skip
    first = read(row, folder)
    assert told(first.replace(turns=first.rejected)) == [("assistant", "[a.png]no")]
    source = save(folder / "x.jsonl", [row])
    for to in ("messages", "webdataset", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        convert(str(source), folder / to, to)
        (back,) = next(iter(open_data(str(folder / to)).values())).samples
        assert [image.load().size for image in back.all_images] == [
            image.load().size for image in first.all_images
        ], to
        assert [type(part).__name__ for part in back.rejected[0].content] == ["Image", "Text"], to
        assert back.desired is True, to


def template() -> RoleTemplate:
    return RoleTemplate(train_bpe(["yes no maybe what is it"] * 4, 300))


@pytest.mark.parametrize("mark", [{"loss": False}, {"weight": 0}])
def test_replies_excluded_from_the_loss_are_read_and_not_learnt(tmp_path: Path, mark: dict):
    talk = [
        {"role": "user", "content": "what"}, {"role": "assistant", "content": "no", **mark},
        {"role": "user", "content": "is it"}, {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    sample = read({"messages": talk})
    assert [turn.supervised for turn in sample.turns] == [True, False, True, True]
    tokens = template().render(sample.turns, False)
    learnt = [i for i, taught in zip(tokens.ids, tokens.supervised, strict=True) if taught]
    assert template().decode(learnt).strip() == "yes"
    # It survives an import.
    source = save(tmp_path / "x.jsonl", [{"messages": talk}])
    for to in ("messages", "webdataset", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        convert(str(source), tmp_path / to, to)
        (back,) = next(iter(open_data(str(tmp_path / to)).values())).samples
        assert [turn.supervised for turn in back.turns] == [True, False, True, True], to


def test_boxes_survive_an_import(folder: Path):
    row = {"messages": TALK, "images": ["a.png"],
           "objects": {"ref": ["a dog", "It"], "bbox": [[10, 5, 20, 20]]}}  # fmt: skip
    source = save(folder / "x.jsonl", [row])
    for to in ("messages", "webdataset", "parquet"):
        if to == "parquet":
            pytest.importorskip("pyarrow")
        convert(str(source), folder / to, to)
        (back,) = next(iter(open_data(str(folder / to)).values())).samples
        boxes = [p for turn in back.turns for p in turn.content if isinstance(p, BoxText)]
        assert [box.box for box in boxes] == [(0.25, 0.25, 0.5, 1.0)], to


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK[:1], "tools": '[{"name": "f"}]'}, "offers tools"),
        ({"conversations": CHAT, "tools": [{"name": "f"}]}, "offers tools"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "",
          "tool_calls": [{"id": 1}]}]}, "messages[1] calls a tool"),
        ({"messages": TALK[:1], "audios": ["x.wav"]}, "has audio"),
        ({"messages": [{"role": "user", "content": "?"},
                       {"role": "assistant", "content": "!", "weight": 0.5}]}, "weight is 0.5"),
        ({"messages": [{"role": "user", "content": "?"},
                       {"role": "assistant", "content": "!", "loss": "no"}]}, 'loss is "no"'),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(folder: Path, row: dict, message: str):
    row = json.loads(json.dumps(row).replace("<image>", "").replace("\\n", "").replace(
        " <ref-object>", " it"))  # fmt: skip
    with pytest.raises(DataError) as caught:
        read(row, folder)
    assert message in str(caught.value)


def test_a_system_column_is_the_system_message():
    row = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
           "system": "Be brief.", "tools": "[]"}  # fmt: skip
    assert told(read(row))[0] == ("system", "Be brief.")


def test_keys_that_nobody_uses_are_counted_named_and_refused_by_strict(folder: Path):
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "?", "cache": 1}], "mood": "x"},
            {"role": "assistant", "content": "!"},
        ],
        "level": 3,
        "source": "web",
    }
    assert unused(row) == {"level": 1, "messages[].mood": 1, "content[].cache": 1}
    assert read(row).meta["level"] == 3
    for key in ("level", "mood"):
        with pytest.raises(DataError, match=rf"not used: {key}|not used: "):
            read(row, strict=True)
    path = save(folder / "train.jsonl", [row, row, {"messages": row["messages"][1:]}])
    found = inspect_data(str(path))
    assert found.unused == {"level": 2, "messages[].mood": 2, "content[].cache": 2}
    assert len(inspect_data(str(path), strict=True).unusable) == 3
    done = convert(str(path), folder / "out")
    assert done.quarantine.unused["level"] == 2
    *_, last = map(json.loads, (folder / "out" / "quarantine.jsonl").read_text().splitlines())
    assert last["keys"]["level"] == 2
    assert "level 2" in last["reason"]


# Placeholders in any column (points 7 and issue 23, 8)


@pytest.mark.parametrize("key", ["question", "problem", "query", "instruction", "prompt"])
def test_placeholders_in_questions_are_places_of_images(folder: Path, key: str):
    row = {"images": ["a.png", "b.png"], key: "Is <image> like <image>?", "answer": "No"}
    assert told(read(row, folder)) == [("user", "Is [a.png] like [b.png]?"), ("assistant", "No")]
    row = {"image": "a.png", key: "<image>\nFind x.", "answer": "3"}
    assert told(read(row, folder))[0] == ("user", "[a.png]Find x.")
    with pytest.raises(DataError, match="2 image parts but 1 image"):
        read(row | {key: "<image><image>?"}, folder)


def test_placeholders_in_captions_are_no_words(folder: Path):
    sample = read({"image": "a.png", "caption": "<image>\nA red square."}, folder)
    assert told(sample)[1] == ("assistant", "A red square.")
    assert sample.meta["captions"] == ["A red square."]


def test_numbered_placeholders_name_their_image(folder: Path):
    nothing = {"bytes": None, "path": None}
    row = {
        "question": "Is <image 2> larger than <image 1>? See <image 2>.",
        "options": "['<image 1>', 'no']",
        "answer": "B",
        "image_1": {"bytes": None, "path": "a.png"},
        "image_2": {"bytes": None, "path": "b.png"},
        "image_3": nothing,
    }
    sample = read(row, folder)
    assert told(sample)[0][1] == ("Is [b.png] larger than [a.png]? See image 2.\nA. image 1\nB. no")
    assert unused(row, folder) == {}


def test_images_named_in_the_text(folder: Path):
    row = {"conversations": [
        {"from": "user", "value": "Picture 1: <img>a.png</img>\nWhat is it?"},
        {"from": "assistant", "value": "Red."}]}  # fmt: skip
    assert told(read(row, folder))[0] == ("user", "Picture 1: [a.png]What is it?")


@given(st.lists(st.sampled_from(["x", "\n", "<image>", "y z"]), max_size=8))
def test_as_many_images_as_placeholders_or_a_reason(pieces: list[str]):
    text, count = "".join(pieces), pieces.count("<image>")
    images = [PIL.Image.new("RGB", (2, 2))] * count
    sample = read({"images": images, "question": text + "?", "answer": "1"})
    assert len(sample.images) == count
    assert "<image>" not in sample.turns[0].text
    if count:
        with pytest.raises(DataError, match="make them equal"):
            read({"images": images * 2, "question": text + "?", "answer": "1"})


# Absolute paths (points 9 and 25)


def test_absolute_paths_where_the_user_allows_them(folder: Path, tmp_path_factory: Any):
    elsewhere = tmp_path_factory.mktemp("photos")
    (elsewhere / "far.png").write_bytes(png("blue"))
    rows = [
        {"id": "1", "images": [str(elsewhere / "far.png")], "question": "?", "answer": "!"},
        {"id": "2", "images": ["a.png"], "question": "?", "answer": "!"},
        {"id": "3", "images": ["../out.png"], "question": "?", "answer": "!"},
    ]
    path = save(folder / "own.jsonl", rows)
    done = convert(str(path), folder / "no")
    assert [*done.quarantine.reasons] == [
        f"{folder.name}/own.jsonl:1",
        f"{folder.name}/own.jsonl:3",
    ]
    assert "--images /" in done.quarantine.reasons[f"{folder.name}/own.jsonl:1"]
    for root, count in ((Path("/"), 2), (elsewhere, 1)):
        out = folder / f"out{count}"
        done = convert(str(path), out, images=root)
        if root != elsewhere:
            assert done.counts == {"train": 2}
        samples = list(open_data(str(out))["train"].samples)
        assert all(out in sample.images[0].source.parents for sample in samples)
        assert any(s.images[0].load().getpixel((0, 0)) == (0, 0, 255) for s in samples)


def test_the_remedy_fits_a_parquet(folder: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": None, "path": "/else/a.png"}, "question": "?", "answer": "!"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    with pytest.raises(DataError) as caught:
        list(open_data(str(folder / "x.parquet"))["train"].samples)
    assert "--images FOLDER" in str(caught.value)
    assert "put the file inside" not in str(caught.value)


# Answers and options (point 3 and issue 23, 1 and 2)


def test_answers_that_are_objects(folder: Path):
    annotators = [{"answer": a, "answer_confidence": "yes", "answer_id": i}
                  for i, a in enumerate(["net", "nets", "net"])]  # fmt: skip
    sample = read({"question": "What?", "answers": annotators}, folder)
    assert told(sample)[1] == ("assistant", "net")
    assert sample.meta["answers"] == ["net", "nets", "net"]
    sample = read({"question": "?", "multiple_choice_answer": "net", "answers": annotators}, folder)
    assert (told(sample)[1][1], len(sample.meta["answers"])) == ("net", 3)
    assert read({"question": "?", "answers": {"text": ["x", "x"]}}).turns[1].text == "x"
    with pytest.raises(DataError, match=r'answers is \{"x": 1\}; give a string'):
        read({"question": "?", "answers": [{"x": 1}]})


SHOWN = "Which?\nA. red\nB. blue"


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["red", "blue"], "answer": 1},
        {"choices": ["red", "blue"], "answer": "1"},
        {"choices": "['red', 'blue']", "answer": "B"},
        {"options": '["red", "blue"]', "answer": "(B)"},
        {"options": {"A": "red", "B": "blue"}, "answer": "Blue"},
        {"options": {"label": ["A", "B"], "text": ["red", "blue"]}, "answer": "b"},
        {"options": ["A. red", "B. blue"], "answer": "B."},
        {"A": "red", "B": "blue", "C": "nan", "D": float("nan"), "answer": "B"},
        {"choice_a": "red", "choice_b": "blue", "answer": "B"},
        {"option_1": "red", "option_2": "blue", "answer": "B"},
        {"choices": ["red", "blue"], "correct_choice_idx": 1, "direct_answers": "['a', 'b']"},
    ],
)
def test_options_are_shown_and_the_answer_is_a_letter(row: dict):
    sample = read({"question": "Which?", **row})
    assert told(sample) == [("user", SHOWN), ("assistant", "B")]
    assert sample.meta["options"] == {"A": "red", "B": "blue"}
    assert unused({"question": "Which?", **row}) == {}


def test_an_answer_that_is_no_option_is_counted():
    row = {"question": "Which?", "choices": ["red", "blue"], "answer": "green"}
    sample = read(row)
    assert (told(sample)[1][1], "options" in sample.meta) == ("green", False)
    assert unused(row) == {"(answers that are none of the options)": 1}


def test_cells_of_nothing_are_no_text():
    row = {"question": "Which?", "hint": "nan", "A": "x", "B": "y", "C": float("nan"),
           "image": float("nan"), "answer": "A"}  # fmt: skip
    assert told(read(row))[0] == ("user", "Which?\nA. x\nB. y")


# One reader for training and evaluation (point 3)

ROWS = [
    {"id": "1", "question": "Which?", "answers": ["red", "crimson"], "image": "a.png"},
    {"id": "2", "question": "And?", "choices": ["x", "y"], "answer": 1, "image": "b.png"},
    {"id": "3", "question": "<image>\nHow many?", "answer": 3, "image": "c.png"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_evaluation_reads_what_training_reads(folder: Path, suffix: str):
    path = folder / f"own.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = [r | {"answers": r.get("answers"), "choices": r.get("choices"),
                     "answer": str(r.get("answer", ""))} for r in ROWS]  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        mark = "\t" if suffix == "tsv" else ","
        lines = ["id question answers choices answer image".replace(" ", mark)]
        for row in ROWS:
            cells = [
                json.dumps(v) if isinstance(v, list) else str(v)
                for v in (
                    row.get(k, "")
                    for k in ("id", "question", "answers", "choices", "answer", "image")
                )
            ]
            lines.append(mark.join('"' + c.replace('"', '""') + '"' for c in cells))
        path.write_text("\n".join(lines))
    else:
        save(path, ROWS)
    asked = Asked(str(path), whole=True).samples()
    trained = [s for source in open_data(str(path)).values() for s in source.samples]
    assert [told(s) for s in asked] == [told(s) for s in trained]
    assert [told(s) for s in asked] == [
        [("user", "[a.png]Which?"), ("assistant", "red")],
        [("user", "[b.png]And?\nA. x\nB. y"), ("assistant", "B")],
        [("user", "[c.png]How many?"), ("assistant", "3")],
    ]
    assert asked[0].meta["answers"] == ["red", "crimson"]
    task = Asked(str(path), whole=True).question_task()
    right = [task.score(s, r)["correct"] for s, r in zip(task.samples(), ("crimson", "B", "3"),
                                                          strict=True)]  # fmt: skip
    assert right == [1, 1, 1]


def test_nothing_is_added_to_a_question_but_what_the_user_says(folder: Path):
    path = save(folder / "own.jsonl", ROWS)
    (first, *_) = Asked(str(path), whole=True).samples()
    assert first.turns[0].text == "Which?"
    (first, *_) = Asked(str(path), whole=True, prompt="One word.").samples()
    assert told(first)[0] == ("user", "[a.png]Which?\nOne word.")
    turned = prompted(read_table(path)[0], "Q: {question} A:")
    assert told(turned)[0] == ("user", "[a.png]Q: Which? A:")


# The table of docs/data.md


def test_the_table_in_the_docs_is_the_declarations():
    docs = Path(__file__).parents[2] / "docs" / "data.md"
    assert forms.markdown() in docs.read_text(encoding="utf-8")


def test_data_urls_and_base64_are_images_and_never_printed_whole(folder: Path):
    text = base64.b64encode(png("blue")).decode()
    for value in (text, f"data:image/png;base64,{text}", [text]):
        sample = read({"whatever": value, "question": "?", "answer": "!"}, folder)
        assert sample.images[0].load().getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError) as caught:
        read({"image": "data:image/png;base64," + "!" * 5000, "question": "?", "answer": "!"})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", ["image_path", "img_path", "image_url", "image_list", "picture", "screenshot"]
)
def test_images_in_columns_of_any_name(folder: Path, name: str):
    for value in ("a.png", ["a.png"], {"bytes": png(), "path": None}, png()):
        sample = read({name: value, "question": "Which?", "answer": "Red."}, folder)
        assert len(sample.images) == 1
    with pytest.raises(DataError, match=r"is the address https://x/a\.png; fetch the file"):
        read({name: "https://x/a.png", "question": "?", "answer": "!"}, folder)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002", "train"), ("validation-00000-of-00001", "validation"),
        ("val", "validation"), ("dev", "validation"), ("testmini", "test"), ("test", "test"),
        ("captions_val2017", "validation"), ("llava_train", "train"), ("train2017", "train"),
        ("contest", None), ("own", None), ("a_test_of_time", None), ("000001", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None):
    assert split_of(name) == split


def questions(path: Path, names: list[str]) -> Path:
    rows = [{"id": name, "question": f"{name}?", "answer": name} for name in names]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, rows)


def ids(path: Path, split: Any, lines: list[str] | None = None) -> list[str]:
    say = None if lines is None else lines.append
    return [s.id for s in load_samples(str(path), split, say=say)]


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train.json", "val.json"), ("train.jsonl", "dev.jsonl"), ("x_train.json", "x_val.json"),
    ],
)  # fmt: skip
def test_validation_is_the_held_out_half(tmp_path: Path, train: str, held: str):
    questions(tmp_path / train, [f"t{i}" for i in range(20)])
    questions(tmp_path / held, [f"v{i}" for i in range(20)])
    assert ids(tmp_path, "train") == [f"t{i}" for i in range(20)]
    assert ids(tmp_path, "test") == [f"v{i}" for i in range(20)]
    assert {*open_data(str(tmp_path))} == {"train", "validation"}


def test_a_split_that_is_not_used_is_said(tmp_path: Path):
    for name in ("train", "val", "test"):
        questions(tmp_path / f"{name}.json", [name])
    lines: list[str] = []
    assert ids(tmp_path, "test", lines) == ["test"]
    assert ids(tmp_path, "train") == ["train"]
    assert lines[1] == "not used: val.json"


def test_a_second_image_of_a_tar_that_is_not_the_samples_is_counted(tmp_path: Path):
    import tarfile

    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.jpg", png("red")), ("0.seg.png", png("blue")), ("0.txt", b"red")):
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    reading = Reading()
    (sample,) = open_data(str(path), reading=reading)["train"].samples
    assert len(sample.images) == 1
    assert reading.unused == {"seg.png": 1}


def test_rows_that_share_an_image_by_its_index(tmp_path: Path):
    text = base64.b64encode(png()).decode()
    for mark, suffix in (("\t", "tsv"), (",", "csv")):
        path = tmp_path / f"own.{suffix}"
        path.write_text(mark.join(("index", "image", "question", "answer")) + "\n"
                        + mark.join(("7", text, "a?", "b")) + "\n"
                        + mark.join(("8", "7", "c?", "d")) + "\n")  # fmt: skip
        one, two = next(iter(open_data(str(path)).values())).samples
        assert one.images[0].digest() == two.images[0].digest()


# What training leaves out or learns without a word (point 10)


def test_empty_replies_are_counted_where_records_are_read(tmp_path: Path):
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": " "}]
    rows = [{"messages": talk}, {"messages": [talk[0], talk[1] | {"content": "!"}]}] * 5
    path = save(tmp_path / "train.jsonl", rows)
    quarantine = Quarantine()
    samples = run.read(str(path), "train", quarantine)
    assert quarantine.unused["(empty replies)"] == 5
    assert "empty replies 5" in said_of(quarantine.unused)
    assert len(samples) == 9
    found = inspect_data(str(path))
    show(found, Console(file=(out := io.StringIO()), width=200))
    assert "empty replies 5" in out.getvalue()


def test_rounds_beyond_max_length_are_counted_once_a_sample():
    said = [s for i in range(6) for s in (user(f"what {i}"), assistant("it is yes no maybe " * 4))]
    processor = Processor(template(), None, max_length=150)  # type: ignore[arg-type]
    sample = Sample(tuple(said), "long")
    for _ in range(3):
        length = len(processor.encode(sample))
    assert length <= 150
    kept = sum(t.role == "assistant" for t in said) - processor.shortened["long"]
    assert 1 <= kept < 6
    whole = Processor(template(), None, max_length=10_000)  # type: ignore[arg-type]
    whole.encode(sample)
    assert whole.shortened == {}


def test_a_chat_template_leaves_excluded_replies_out_of_the_loss():
    from transformers import PreTrainedTokenizerFast

    words = train_bpe(["what is it? yes no"] * 4, 320)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    turns = (
        user("what"),
        assistant("no").replace(supervised=False),
        user("is"),
        assistant("yes"),
    )
    tokens = ChatTemplate(tokenizer).render(turns, False)
    learnt = [i for i, taught in zip(tokens.ids, tokens.supervised, strict=True) if taught]
    assert tokenizer.decode(learnt, skip_special_tokens=True).strip() == "yes"


def test_views_keep_what_is_excluded_from_the_loss():
    image = Image(PIL.Image.new("RGB", (8, 8)))
    sample = Sample((user(image, "?"), assistant("!").replace(supervised=False)))
    seen = moved(chat, 1)(sample, np.random.default_rng(0))
    assert seen is not None
    assert [turn.supervised for turn in seen.turns] == [True, False]


# What people have, refused before (issue 23)


def test_location_tokens_are_boxes(folder: Path):
    whole = "<loc0000><loc0000><loc1023><loc1023>"
    row = {"image": "a.png", "prefix": "detect cat",
           "suffix": f"<loc0256><loc0128><loc0512><loc0256> cat ; {whole} dog"}  # fmt: skip
    sample = read(row, folder)
    assert told(sample)[1][1] == "[125, 250, 250, 500] cat ; [0, 0, 1000, 1000] dog"
    first, second = [p.box for p in sample.turns[1].content if isinstance(p, BoxText)]
    assert first == pytest.approx((128 / 1023, 256 / 1023, 256 / 1023, 512 / 1023))
    assert second == (0.0, 0.0, 1.0, 1.0)


IMAGE_PARTS = [
    {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
    {"type": "image_url", "image_url": "a.png"},
    {"type": "image", "image": "a.png"},
    {"type": "image", "url": "a.png"},
    {"type": "image", "path": "a.png"},
    {"type": "image", "image": {"bytes": None, "path": "a.png"}},
    {"type": "input_image", "image_url": "a.png"},
    {"type": "image", "bytes": png()},
    {"type": "image", "base64": base64.b64encode(png()).decode()},
    {"type": "image_url", "image_url": {
        "url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"}},
    {"image": "a.png"},
]  # fmt: skip


@pytest.mark.parametrize("part", IMAGE_PARTS, ids=lambda part: str(part)[:40])
def test_parts_that_carry_their_image(folder: Path, part: dict):
    talk = [
        {"role": "user", "content": [part, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    sample = read({"messages": talk}, folder)
    assert sample.images[0].load().size == (40, 20)
    assert [turn.text for turn in sample.turns] == ["Which?", "Red."]


CONVERSATIONS = [
    {"messages": [{"role": "human", "content": "<image>Which?"}, {"role": "bot", "content": "x"}]},
    {"prompt": "Which?", "completion": "Red."},
    {"prompt": [{"role": "user", "content": "Which?"}],
     "completion": [{"role": "assistant", "content": "Red."}]},
    {"conversation": [{"human": "Which?", "assistant": "Red."}]},
    {"conversation": [{"input": "Which?", "output": "Red.", "system": ""}]},
    {"conversation": [{"role": "user", "content": "Which?"},
                      {"role": "assistant", "content": "Red."}]},
    {"conversations": json.dumps([{"from": "human", "value": "<image>\nWhich?"},
                                  {"from": "gpt", "value": "Red."}])},
    {"prefix": "Which?", "suffix": "Red."},
    {"problem": "Which?", "solution": "Red."},
    {"query": "Which?", "response": "Red."},
    {"instruction": "Which?", "input": "", "output": "Red."},
    {"messages": [{"role": "USER", "content": [{"type": "text", "text": "Which?"}]},
                  {"role": "model", "content": "Red."}]},
]  # fmt: skip


@pytest.mark.parametrize("row", CONVERSATIONS[1:], ids=lambda row: str(row)[:40])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_conversations_of_every_spelling(folder: Path, row: dict, suffix: str):
    path = save(folder / f"own.{suffix}", [{**row, "images": ["a.png"]}] * 2)
    for sample in next(iter(open_data(str(path)).values())).samples:
        assert told(sample) == [("user", "[a.png]Which?"), ("assistant", "Red.")]


def test_a_text_that_is_learnt_without_a_question(folder: Path):
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "A red square."}]
    row = {"messages": [{"role": "pretrain", "content": content}]}
    assert told(read(row, folder)) == [("user", "[a.png]"), ("assistant", "A red square.")]


ASKED_AND_TOLD = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red."}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps([ASKED_AND_TOLD])),
        ("a.jsonl", json.dumps(ASKED_AND_TOLD)),
        ("a.jsonl", json.dumps({"custom_id": "7", "method": "POST", "url": "/v1/chat/completions",
                                "body": {"model": "m", "messages": ASKED_AND_TOLD}})),
        ("a.json", json.dumps({"data": [{"question": "Which?", "answer": "Red."}]}, indent=1)),
        ("a.json", json.dumps({"7": {"question": "Which?", "answer": "Red."}})),
        ("a.json", json.dumps({"question": "Which?", "answer": "Red."}) + "\n" + json.dumps(
            {"question": "Which?", "answer": "Red."})),
        ("a.csv", "question,answer\nWhich?,Red.\n"),
        ("a.tsv", "question\tanswer\nWhich?\tRed.\n"),
    ],
)  # fmt: skip
def test_files_of_every_kind_of_record(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    samples = list(next(iter(open_data(str(tmp_path / name)).values())).samples)
    assert samples
    for sample in samples:
        assert told(sample) == [("user", "Which?"), ("assistant", "Red.")]


@pytest.mark.parametrize(
    ("row", "told_"),
    [
        ({"video": "v.mp4", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
          {"from": "gpt", "value": "A dog."}]}, "[v.mp4]What?"),
        ({"videos": ["v.mp4"], "messages": [{"role": "user", "content": "<video>What?"},
          {"role": "assistant", "content": "A dog."}]}, "[v.mp4]What?"),
        ({"video": "v.mp4", "question": "What?", "answer": "A dog."}, "[v.mp4]What?"),
        ({"clip": "v.mp4", "question": "What?", "answer": "A dog."}, "[v.mp4]What?"),
        ({"messages": [{"role": "user", "content": "<video>v.mp4</video>What?"},
          {"role": "assistant", "content": "A dog."}]}, "[v.mp4]What?"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"},
          {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A dog."}]},
         "[v.mp4]What?"),
    ],
)  # fmt: skip
def test_videos_of_every_spelling(folder: Path, row: dict, told_: str):
    assert told(read(row, folder)) == [("user", told_), ("assistant", "A dog.")]


@pytest.mark.parametrize("role", ["function_call", "observation", "tool"])
def test_tool_calls_are_refused_by_name(role: str):
    talk = [{"from": "human", "value": "?"}, {"from": role, "value": "{}"}]
    with pytest.raises(DataError, match="tool calls are not read"):
        read({"conversations": talk})


def test_audio_is_refused_by_name():
    talk = [{"role": "user", "content": "<audio>x.wav</audio>What?"},
            {"role": "assistant", "content": "!"}]  # fmt: skip
    with pytest.raises(DataError, match="names audio, which is not read"):
        read({"messages": talk})


# Layouts of folders (issue 23, point 14)


def test_one_configuration_of_the_hub_is_found_and_several_are_named(tmp_path: Path):
    questions(tmp_path / "default" / "train-00000-of-00001.parquet", [f"t{i}" for i in range(9)])
    questions(tmp_path / "default" / "test-00000-of-00001.parquet", ["v"])
    assert len(ids(tmp_path, "train")) == 9
    assert ids(tmp_path, "test") == ["v"]
    questions(tmp_path / "extra" / "train-00000-of-00001.parquet", ["x"])
    with pytest.raises(DataError, match=r"holds the configurations default, extra; name one"):
        load_samples(str(tmp_path), "train")
    assert ids(tmp_path / "default", "test") == ["v"]


def test_class_folders_with_splits(tmp_path: Path):
    for split, names in (("train", ("red_fox", "cat")), ("val", ("red_fox", "cat"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png())
    train, test = (load_samples(str(tmp_path), split) for split in ("train", "test"))
    assert [s.turns[1].text for s in train] == ["cat", "red fox"]
    assert [s.meta["label"] for s in test] == ["cat", "red_fox"]


def test_folders_of_kohya(tmp_path: Path):
    for name, ending in (("10_fox", ".caption"), ("5_cat", ".txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png())
        (tmp_path / name / f"1{ending}").write_text(f"a photo, {name}")
    (source,) = open_data(str(tmp_path)).values()
    assert source.format.name == "plain"
    assert [s.turns[1].text for s in source.samples] == ["a photo, 10_fox", "a photo, 5_cat"]


def test_a_folder_of_images_beside_its_file_is_no_split(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(png())
    rows = [{"id": "1", "image": "train/a.png", "question": "?", "answer": "!"}] * 2
    save(tmp_path / "train.json", rows)
    save(tmp_path / "val.json", rows)
    assert ids(tmp_path, "train") == ids(tmp_path, "test") == ["1", "1"]


# Inspection (issue 23, point 18)


def test_inspection_shows_samples_as_they_are_read(folder: Path):
    (folder / "v.mp4").write_bytes(b"v")
    talk = [
        {"role": "user", "content": "<image>Which is <bbox>?"},
        {"role": "assistant", "content": "Red.", "loss": False},
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No."},
    ]
    rows = [
        {"id": "1", "messages": talk, "images": ["a.png"], "objects": {"bbox": [[0, 0, 20, 20]]}},
        {"id": "2", "question": "Why?", "image": "b.png"},
        {"id": "3", "question": "What?", "video": "v.mp4", "answer": "That."},
    ]
    found = inspect_data(str(save(folder / "own.json", rows)))
    show(found, Console(file=(out := io.StringIO()), width=200))
    text = out.getvalue()
    assert "user: [image a.png 40x20]Which is [0, 0, 500, 1000]?" in text
    assert "assistant (not learnt): Red." in text
    assert "user: [video v.mp4]What?" in text
    assert found.odd["no reply"] == 1
    assert summary(found)["clips"] == 1


def test_labels_go_on_after_a_bad_record(tmp_path: Path, capsys: pytest.CaptureFixture):
    talk = [{"role": "user", "content": "is it red"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": talk}, {"messages": talk[1:]}, *[{"messages": talk, "id": str(i)}
                                                          for i in range(12)]]  # fmt: skip
    save(tmp_path / "train.jsonl", rows)
    save(tmp_path / "test.jsonl", rows[:1])
    with pytest.raises(DataError, match="1 of 14 samples"):
        inspect_labels(str(tmp_path), "unified_nano", 2)
    text = capsys.readouterr().out
    assert "no user turn" in text
    assert "⟦yes</s>⟧" in text


# Boxes in the model's own format


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("thousandths", "[250, 250, 500, 1000]"), ("fractions", "[0.250, 0.250, 0.500, 1.000]"),
        ("pixels", "[10, 5, 20, 20]"), ("loc", "<loc0256><loc0256><loc1023><loc0512>"),
    ],
)  # fmt: skip
def test_a_model_gets_boxes_in_its_own_format(folder: Path, format: Any, text: str):
    talk = [
        {"role": "user", "content": "<image>Where?"},
        {"role": "assistant", "content": "<bbox>"},
    ]
    row = {"messages": talk, "images": ["a.png"], "objects": {"bbox": [[10, 5, 20, 20]]}}
    sample = read(row, folder)
    assert written(sample, format).turns[1].text == text
    bare = sample.replace(turns=(user("Where?"), sample.turns[1]))
    if format == "pixels":
        with pytest.raises(DataError, match="needs the size of its image"):
            Processor(template(), None, boxes=format).encode(bare)  # type: ignore[arg-type]
        return
    processor = Processor(template(), None, boxes=format)  # type: ignore[arg-type]
    encoded = processor.encode(bare)
    learnt = encoded.labels[encoded.labels != IGNORE].tolist()
    assert template().decode(learnt).strip() == text


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_boxes_come_back_within_half_a_step(corners: tuple, size: tuple[int, int]):
    back = read_box(write_as(corners, "thousandths"), size)
    for i, one in enumerate(back):
        assert abs(one - corners[i] * size[i % 2]) <= size[i % 2] / 2000 + 1e-6
    (located_,) = located(write_as(corners, "loc"))
    assert isinstance(located_, BoxText)
    assert located_.box == pytest.approx(corners, abs=0.5 / 1023 + 1e-9)


# Tars (point 20)


def test_two_samples_of_one_key_in_a_row_are_a_bad_record(tmp_path: Path):
    import tarfile

    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.jpg", png("red")), ("0.txt", b"red"), ("0.jpg", png("blue")),
                           ("0.TXT", b"blue"), ("1.jpg", png()), ("1.txt", b"good")):  # fmt: skip
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    found: list[tuple[str, DataError]] = []
    reading = Reading(lambda *pair: found.append(pair))
    (sample,) = open_data(str(path), reading=reading)["train"].samples
    assert sample.turns[1].text == "good"
    assert [where for where, _ in found] == [f"{tmp_path.name}/x.tar:0"]
    assert "two samples of the key 0" in str(found[0][1])
    found.clear()
    assert len(open_indexed([local(path)], reading)) == 1
    assert "two samples of the key 0" in str(found[0][1])
