"""Reading and writing messages JSONL, and which file stands for which split."""

import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Sample, Text, Video, assistant, user
from chiasm.data.formats.messages import read_messages, write_messages
from chiasm.data.load import load_samples
from shared_data import SHARED

USER = {"role": "user", "content": "Which?"}
ASSISTANT = {"role": "assistant", "content": "That."}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}


def row(*messages: Any, **rest: Any) -> str:
    return json.dumps({"id": "1", "messages": list(messages) or [USER, ASSISTANT], **rest})


def put(file: Path, *lines: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(s.encode() if isinstance(s, str) else s for s in map(ended, lines)))
    return file


def ended(line: str | bytes) -> str | bytes:
    return line + ("\n" if isinstance(line, str) else b"\n")


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def says(sample: Sample) -> list:
    """Everything of a sample that a round trip has to keep."""

    def content(part: Text | Image | Video) -> Any:
        if isinstance(part, Text):
            return part.text
        return part.digest() if isinstance(part, Image) else part.path.read_bytes()

    turns = [(turn.role, [(type(p), content(p)) for p in turn.content]) for turn in sample.turns]
    meta = {key: value for key, value in sample.meta.items() if key != "where"}
    return [sample.id, sample.independent, meta, turns]


# Reading


def test_a_line_becomes_a_sample(tmp_path: Path):
    line = row(
        SYSTEM,
        {"role": "user", "content": [{"type": "text", "text": "Compare"}, {"type": "image"},
                                     {"type": "image"}, {"type": "video"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "They differ."}]},
        USER,
        images=["images/a.png", "images/../b.png"], videos=["v.mp4"], meta={"page": 3},
    )  # fmt: skip
    (sample,) = read_messages(put(tmp_path / "my set" / "train.jsonl", line))
    assert [t.role for t in sample.turns] == ["system", "user", "assistant", "user"]
    first, *media = sample.turns[1].content
    assert first == Text("Compare")
    assert [type(m) for m in media] == [Image, Image, Video]
    assert [i.source for i in sample.images] == [
        tmp_path / "my set/images/a.png", tmp_path / "my set/images/../b.png"
    ]  # fmt: skip
    assert media[2].path == tmp_path / "my set/v.mp4"
    assert {m.where for m in media} == {sample.where} == {"train.jsonl:1"}
    assert sample.meta == {"page": 3, "where": "train.jsonl:1"}
    assert (sample.id, sample.source, sample.independent) == ("1", "my set", False)


def test_optional_keys_may_be_absent_or_null(tmp_path: Path):
    lines = [
        json.dumps({"messages": [USER]}),
        row(USER, id=None, images=None, videos=None, independent=None, meta=None),
        row(USER, id=7, independent=True, extra="ignored"),
    ]
    bare, null, number = read_messages(put(tmp_path / "train.jsonl", *lines))
    assert bare.id == null.id == ""
    assert bare.turns == null.turns == (user("Which?"),)
    assert null.meta == {"where": "train.jsonl:2"}
    assert (number.id, number.independent) == ("7", True)


def test_blank_lines_a_mark_and_windows_ends_are_tolerated(tmp_path: Path):
    file = put(tmp_path / "train.jsonl", b"\xef\xbb\xbf" + row(id="a").encode() + b"\r", "", "  \t",
               row(id="\u2028é"))  # fmt: skip
    first, second = read_messages(file)
    assert (first.id, first.where) == ("a", "train.jsonl:1")
    assert (second.id, second.where) == ("\u2028é", "train.jsonl:4")
    assert read_messages(put(tmp_path / "empty.jsonl")) == []


BAD = [
    ('{"id": 1,', "not JSON: Expecting property name enclosed in double quotes at column 10; "
     "correct or remove the line"),
    ("[" * 100_000, "not usable JSON: "),
    ("1" * 5000, "not usable JSON: "),
    ("[1, 2]", "expected a JSON object, found [1, 2]; one object a line"),
    ("null", "expected a JSON object, found null"),
    (b'{"id": "\xe9"}', "not UTF-8: byte 0xe9 at column 9; save the file as UTF-8"),
    ('{"id": "1"}', "columns id: neither turns (messages, conversations, texts), question and"),
    ('{"messages": []}', '"messages" is []; give the turns'),
    ('{"messages": {"role": "user"}}', '"messages" is {"role": "user"}; give the turns'),
    (row("hello"), 'messages[0] is "hello"; make it an object with role and content'),
    (row(USER, {"role": "asistant", "content": "x"}),
     "messages[1] has the unknown role \"asistant\"; did you mean 'assistant'?"),
    (row({"content": "x"}), "messages[0] has the unknown role null; use system, developer, user,"),
    (row({"role": ["user"], "content": "x"}), 'messages[0] has the unknown role ["user"]'),
    (row({"role": "user"}), "messages[0].content is null; make it a string or a list of parts"),
    (row({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a"}}]}),
     "messages[0].content[0].image_url is the address http://x/a; fetch the file"),
    (row({"role": "user", "content": [{"type": "imag", "image": "x"}]}),
     "messages[0].content[0] has the unknown type \"imag\"; did you mean 'image'?"),
    (row({"role": "user", "content": [{"words": "x"}]}),
     "messages[0].content[0] has the unknown type null; use text, image, video"),
    (row({"role": "user", "content": ["x"]}), "messages[0].content[0] has the unknown type"),
    (row(USER, {"role": "assistant", "content": [{"type": "text", "text": None}]}),
     "messages[1].content[0].text is null; make it a string or remove the part"),
    (row({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text is null"),
    (row({"role": "user", "content": "\ud83d"}),
     "messages[0] holds half a surrogate pair"),
    (row(ASKED, ASSISTANT, ASKED, images=["a.png"]),
     '2 image parts but 1 image in "images"; make them equal'),
    (row(ASKED), '1 image part but 0 images in "images"; make them equal'),
    (row(ASKED, images=["a.png", "b.png"]), '1 image part but 2 images in "images"'),
    (row(ASKED, images=[None]), "images[0] is null; make it a path relative to the file's folder"),
    (row(ASKED, images=[""]), 'images[0] is ""'),
    (row(ASKED, images=["/data/a.png"]), "images[0] is an absolute path, '/data/a.png', and the "
     "data set would break when it is moved; allow it with --images /, name the images'"),
    (row(ASKED, images=["C:\\data\\a.png"]), "images[0] is an absolute path"),
    (row(ASKED, images=["images/../../a.png"]), "images[0] is a path out of the file's folder"),
    (row(ASKED, images=[".."]), "images[0] is a path out of the file's folder"),
    (row(SYSTEM, ASSISTANT), "no user turn; add the question or remove the line"),
    (row(SYSTEM), "no user turn"),
    (row(ASSISTANT, USER), "the assistant speaks before the user; put the question first"),
    (row(USER, SYSTEM, USER), "messages[0] and messages[2] are both the user's; join them or add"),
    (row(USER, ASSISTANT, ASSISTANT), "messages[1] and messages[2] are both the assistant's"),
    (row(USER, id=[1]), '"id" is [1]; make it a string'),
    (row(USER, id=True), '"id" is true; make it a string'),
    (row(USER, independent="yes"), '"independent" is "yes"; make it true or false'),
    (row(USER, meta=[1]), '"meta" is [1]; make it an object'),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_the_first_bad_line_is_named_with_its_place(
    tmp_path: Path, line: str | bytes, message: str
):
    file = put(tmp_path / "tables-qa" / "train.jsonl", row(), "", line, row(), "not JSON either")
    with pytest.raises(DataError) as caught:
        read_messages(file)
    assert str(caught.value).startswith(f"tables-qa/train.jsonl:3: {message}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 240


def test_on_error_gets_every_bad_line_and_the_good_ones_are_read(tmp_path: Path):
    lines = [text for bad, _ in BAD for text in (bad, row(id=str(len(bad))))]
    found: list[tuple[str, DataError]] = []
    file = put(tmp_path / "set" / "train.jsonl", *lines)
    samples = read_messages(file, on_error=lambda where, error: found.append((where, error)))
    assert [s.where for s in samples] == [f"train.jsonl:{2 * i + 2}" for i in range(len(BAD))]
    assert [where for where, _ in found] == [
        f"set/train.jsonl:{2 * i + 1}" for i in range(len(BAD))
    ]
    for (where, error), (_, message) in zip(found, BAD, strict=True):
        assert str(error).startswith(f"{where}: {message}")


def test_an_error_raised_by_on_error_ends_the_reading(tmp_path: Path):
    def stop(where: str, error: DataError) -> None:
        raise error

    with pytest.raises(DataError, match=re.escape("/train.jsonl:1: no user turn")):
        read_messages(put(tmp_path / "train.jsonl", row(SYSTEM)), on_error=stop)


def test_a_folder_means_its_train_file_or_its_only_one(tmp_path: Path):
    put(tmp_path / "b.jsonl", row(id="b"))
    assert read_messages(tmp_path)[0].id == "b"
    put(tmp_path / "a.jsonl", row(id="a"))
    with pytest.raises(DataError, match=r"holds no train\.jsonl but a\.jsonl, b\.jsonl; name one"):
        read_messages(tmp_path)
    put(tmp_path / "train.jsonl", row(id="t"))
    assert read_messages(tmp_path)[0].id == "t"


def test_a_path_that_means_no_file_is_refused(tmp_path: Path):
    (tmp_path / "tables-qa").mkdir()
    put(tmp_path / "notes.txt", "x")
    for name, message in (
        ("tables-qa", "holds no .jsonl file"),
        ("notes.txt", "not a .jsonl file; give a .jsonl file or the folder of one"),
        ("table-qa", "no such file or folder; did you mean 'tables-qa'?"),
        ("table-qa/train.jsonl", "no such file or folder; did you mean 'tables-qa'?"),
        ("zzz", "no such file or folder; give a .jsonl file or the folder of one"),
    ):
        with pytest.raises(DataError, match=re.escape(f"{tmp_path / name}: {message}")):
            read_messages(tmp_path / name)


def test_the_folder_of_a_relative_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "set" / "train.jsonl", row())
    monkeypatch.chdir(tmp_path / "set")
    for path in ("train.jsonl", ".", "../set"):
        assert read_messages(Path(path))[0].source == "set"


# Writing

IMAGES = [png(color) for color in ("red", "green", "blue")]

texts = st.builds(Text, st.text(max_size=12))
media = st.one_of(
    st.builds(Image, st.sampled_from([Path("images/0.png"), Path("images/1.png"), *IMAGES])),
    st.builds(Video, st.just(Path("v.mp4"))),
)


@st.composite
def conversations(draw: st.DrawFn) -> Sample:
    turns = []
    for i in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            turns.append(Message("system", (draw(texts),)))
        role = "assistant" if i % 2 else "user"
        turns.append(Message(role, tuple(draw(st.lists(texts | media, max_size=4)))))
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    meta = draw(st.dictionaries(st.text(max_size=5), values | st.lists(values), max_size=3))
    meta.pop("where", None)
    return Sample(tuple(turns), draw(st.text(max_size=5)), "", draw(st.booleans()), meta)


def rooted(sample: Sample, root: Path) -> Sample:
    """The sample with its relative paths below a folder."""

    def move(part: Any) -> Any:
        if isinstance(part, Image) and isinstance(part.source, Path):
            return Image(root / part.source)
        return Video(root / part.path) if isinstance(part, Video) else part

    turns = (Message(t.role, tuple(map(move, t.content))) for t in sample.turns)
    return sample.replace(turns=tuple(turns))


def furnish(root: Path) -> None:
    (root / "images").mkdir()
    for name, data in (
        ("images/0.png", IMAGES[0]),
        ("images/1.png", IMAGES[1]),
        ("v.mp4", b"v"),
    ):
        (root / name).write_bytes(data)


@settings(max_examples=20, deadline=None)
@given(st.lists(conversations(), max_size=3))
def test_round_trip_of_any_conversation(samples: list[Sample]):
    with tempfile.TemporaryDirectory() as name:
        here, there = Path(name, "a"), Path(name, "b")
        here.mkdir()
        furnish(here)
        written = [rooted(sample, here) for sample in samples]
        write_messages(written, here / "train.jsonl")
        once = read_messages(here)
        write_messages(once, there / "train.jsonl")
        twice = read_messages(there)
        expected = [says(sample) for sample in written]
        assert [says(sample) for sample in once] == expected
        assert [says(sample) for sample in twice] == expected


def test_files_inside_are_named_in_place_and_not_opened(tmp_path: Path):
    samples = [Sample((user(Image(tmp_path / "deep" / "no.png"), "?"),), "1")]
    write_messages(samples, tmp_path / "train.jsonl")
    assert json.loads((tmp_path / "train.jsonl").read_text())["images"] == ["deep/no.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


def test_everything_else_is_saved_once_by_its_content(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.PNG").write_bytes(IMAGES[0])
    (outside / "v.mp4").write_bytes(b"clip")
    decoded = PIL.Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    images = [Image(outside / "a.PNG"), Image(IMAGES[0]), Image(IMAGES[1]), Image(decoded)]
    sample = Sample((user(*images, *images, Video(outside / "v.mp4")),), "1")
    write_messages([sample, sample], tmp_path / "set" / "train.jsonl")
    assert len(list((tmp_path / "set/images").iterdir())) == 3
    assert len(list((tmp_path / "set/videos").iterdir())) == 1
    back = read_messages(tmp_path / "set")[0]
    for before, after in zip(sample.images, back.images, strict=True):
        assert before.load().tobytes() == after.load().tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "F", "YCbCr"])
def test_a_decoded_image_of_any_mode_keeps_its_rgb_pixels(tmp_path: Path, mode: str):
    image = Image(PIL.Image.new("RGB", (4, 4), "teal").convert(mode))
    write_messages([Sample((user(image),))], tmp_path / "train.jsonl")
    assert read_messages(tmp_path)[0].images[0].load().tobytes() == image.load().tobytes()


def test_the_place_of_reading_is_not_written(tmp_path: Path):
    sample = Sample((user("?"),), "1", meta={"where": "old.jsonl:9", "page": 2})
    write_messages([sample], tmp_path / "train.jsonl")
    assert json.loads((tmp_path / "train.jsonl").read_text())["meta"] == {"page": 2}


def test_half_a_surrogate_in_meta_survives(tmp_path: Path):
    sample = Sample((user("é"),), "1", meta={"raw": "\ud83d"})
    write_messages([sample], tmp_path / "train.jsonl")
    assert read_messages(tmp_path)[0].meta["raw"] == "\ud83d"
    assert "é".encode() in (tmp_path / "train.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.replace(meta={"x": object()}), "sample '2': meta is not JSON"),
        (lambda s: s.replace(turns=(user(Image(b"?", "x.pdf:3")),)), "(x.pdf:3)"),
        (lambda s: s.replace(turns=(user(Image(Path("/no/a.png"))),)), "/no/a.png: no such"),
        (lambda s: s.replace(turns=(user(Video(Path("/no/a.mp4"))),)), "/no/a.mp4: no such"),
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, spoil: Callable[[Sample], Sample], message: str
):
    good = Sample((user("?"), assistant("!")), "1")
    write_messages([good], tmp_path / "train.jsonl")
    before = (tmp_path / "train.jsonl").read_bytes()
    with pytest.raises(DataError, match=re.escape(message)):
        write_messages([good, spoil(good.replace(id="2"))], tmp_path / "train.jsonl")
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["train.jsonl"]


@pytest.mark.skipif(not SHARED.exists(), reason="shared/data is not here")
@pytest.mark.parametrize(
    "name", ["charts-qa", "cifar10-zeroshot", "photos-captions", "receipts", "screenshots",
             "tables-qa", "video-clips"]
)  # fmt: skip
def test_the_shared_sets_survive_a_round_trip(tmp_path: Path, name: str):
    for file in sorted((SHARED / name).glob("*.jsonl")):
        samples = read_messages(file)
        assert samples
        assert all(s.source == name for s in samples)
        few = samples[:5]
        write_messages(few, tmp_path / file.name)
        assert [says(s) for s in read_messages(tmp_path / file.name)] == [says(s) for s in few]


# Which file is which split


def ids(path: Path | str, split: Any) -> list[str]:
    return [sample.id for sample in load_samples(str(path), split)]


def rows(*names: str) -> list[str]:
    return [row(id=name) for name in names]


@pytest.mark.parametrize("train", ["train.jsonl", "mine.jsonl"])
def test_a_folder_with_a_test_file_gives_each_split_its_file(tmp_path: Path, train: str):
    put(tmp_path / train, *rows("a", "b"))
    put(tmp_path / "test.jsonl", *rows("c"))
    for path in (tmp_path, tmp_path / train):
        assert ids(path, "train") == ["a", "b"]
        assert ids(path, "test") == ["c"]
    assert ids(tmp_path / "test.jsonl", "test") == ["c"]


def test_a_test_file_is_never_trained_on(tmp_path: Path):
    put(tmp_path / "test.jsonl", *rows("a", "b"))
    for path in (tmp_path, tmp_path / "test.jsonl"):
        assert ids(path, "test") == ["a", "b"]
        with pytest.raises(DataError, match=r"test\.jsonl: a test set is not trained on; add"):
            ids(path, "train")


@pytest.mark.parametrize("count", [2, 9, 10, 25])
def test_without_a_test_file_a_tenth_is_held_out(tmp_path: Path, count: int):
    names = [f"sample-{i}" for i in range(count)]
    file = put(tmp_path / "train.jsonl", *rows(*names))
    train, test = ids(file, "train"), ids(file, "test")
    assert len(test) == max(1, count // 10)
    assert sorted(train + test) == sorted(names)
    assert train == [name for name in names if name in train]
    put(file, *rows(*names[::-1]))
    assert set(ids(tmp_path, "test")) == set(test)


def test_samples_of_one_id_are_held_out_together(tmp_path: Path):
    file = put(tmp_path / "train.jsonl", *rows(*(str(i % 7) for i in range(70))))
    assert len(ids(file, "test")) == 10
    assert not set(ids(file, "test")) & set(ids(file, "train"))


def test_samples_about_one_image_are_held_out_together(tmp_path: Path):
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(b"")
    asked = {"role": "user", "content": [{"type": "image"}]}
    lines = [
        json.dumps({"id": f"q{n}", "images": [f"{n % 20}.png"], "messages": [asked]})
        for n in range(100)
    ]
    file = put(tmp_path / "train.jsonl", *lines)
    shown = [{s.images[0].source for s in load_samples(str(file), h)} for h in ("train", "test")]
    assert [len(names) for names in shown] == [18, 2]
    assert not shown[0] & shown[1]


def test_samples_without_an_id_are_divided_by_their_line(tmp_path: Path):
    put(tmp_path / "train.jsonl", *[json.dumps({"messages": [USER]})] * 20)
    train, test = (load_samples(str(tmp_path), split) for split in ("train", "test"))
    assert len({s.where for s in train} | {s.where for s in test}) == 20
    assert (len(train), len(test)) == (18, 2)


def test_an_empty_half_is_refused_with_the_count(tmp_path: Path):
    file = put(tmp_path / "train.jsonl", row())
    with pytest.raises(DataError, match=re.escape("1 usable samples leave none for the train")):
        load_samples(str(file), "train")
    put(file)
    with pytest.raises(DataError, match=re.escape("add samples or a test.jsonl")):
        load_samples(str(file), "test")
    put(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/test.jsonl: 0 usable samples")):
        load_samples(str(tmp_path), "test")


def test_a_data_set_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path):
    put(tmp_path / "tables-qa" / "train.jsonl", row())
    with pytest.raises(
        DataError, match=re.escape("no such file or folder; did you mean 'tables-qa'")
    ):
        load_samples(str(tmp_path / "table-qa"), "train")
    with pytest.raises(DataError, match="did you mean 'easy-vqa'"):
        load_samples("easy_vqa", "train")


def test_bad_lines_can_be_handed_on(tmp_path: Path):
    found: list[str] = []
    file = put(tmp_path / "set" / "train.jsonl", *rows("a", "b"), row(SYSTEM))
    half = load_samples(str(file), "train", on_error=lambda where, _: found.append(where))
    assert (len(half), found) == (1, ["set/train.jsonl:3"])


def test_the_built_in_set_goes_by_its_name():
    pytest.importorskip("easy_vqa")
    assert len(load_samples("easy-vqa", "test")) == 1000
