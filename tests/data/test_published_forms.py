"""Published files, one folder each in tests/data/forms: the shape is the published one, the content
our own. expected.json has the conversations as a person reads them."""

import json
import re
import shlex
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, Text, Video
from chiasm.data.boxes import write_as
from chiasm.data.convert import convert
from chiasm.data.dataset import read
from chiasm.data.formats.grounding import Box, box_text, located
from chiasm.data.formats.reading import Reading
from chiasm.data.formats.registry import detect
from chiasm.data.formats.rows import sample_of
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.load import load_samples, open_data
from chiasm.data.quarantine import Quarantine
from chiasm.eval.task import QuestionTask
from chiasm.recipes.eval_task import Asked

FORMS = sorted(path.parent for path in (Path(__file__).parent / "forms").glob("*/expected.json"))


@pytest.fixture(params=FORMS, ids=lambda path: path.name)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path | None, dict]:
    return laid_out(request.param, tmp_path)


def laid_out(folder: Path, place: Path) -> tuple[Path, Path | None, dict]:
    """(the data, the folder of its images, what is expected), with images where they belong."""
    root = shutil.copytree(folder, place / folder.name)
    expected = json.loads((root / "expected.json").read_text(encoding="utf-8"))
    (root / "expected.json").unlink()
    for i, name in enumerate(expected["media"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".mp4"):
            (root / name).write_bytes(b"not decoded here")
        else:
            PIL.Image.new("RGB", (40, 20), (50 * i, 90, 20)).save(root / name)
    images = root / expected["images"] if expected["images"] else None
    return root / expected["data"], images, expected


def told(sample: Sample) -> list[str]:
    """A line a message: its role and content, images by the names of their files."""

    def part(one: Any) -> str:
        if isinstance(one, Text):
            return one.text
        source = one.path if isinstance(one, Video) else one.source
        return f"[{source.name}]" if isinstance(source, Path) else "[bytes]"

    return [f"{turn.role}: {''.join(map(part, turn.content))}" for turn in sample.turns]


def test_a_published_file_is_read_as_a_person_reads_it(form):
    data, images, expected = form
    bad: list[str] = []
    reading = Reading(lambda where, error: bad.append(str(error)), images)
    found = {
        split: [told(sample) for sample in source.samples]
        for split, source in open_data(str(data), reading=reading).items()
    }
    assert not bad
    assert found == expected["conversations"]
    assert dict(reading.unused) == expected["unused"]


def test_training_and_evaluation_read_the_same(form):
    """Both halves of the file together are all of it, and evaluation asks what training learns."""
    data, images, expected = form
    quarantine = Quarantine()
    splits = expected["halves"]
    for half in ("train", "test"):
        if half not in splits:
            continue
        reading = Reading(quarantine.record, images)
        samples = read(str(data), half, quarantine, reading)
        assert [told(sample) for sample in samples] == splits[half]
    if "test" in splits:
        asked = Asked(str(data), images=images).samples()
        assert [told(sample) for sample in asked] == splits["test"]
        questions = QuestionTask("set", asked).samples()
        replies = [line for lines in splits["test"] for line in lines if "assistant: " in line]
        assert len(questions) == len(replies)
    assert not quarantine.reasons


def test_inspection_and_import_read_the_same(form, tmp_path: Path):
    data, images, expected = form
    if any(name.endswith(".mp4") for name in expected["media"]):
        pytest.skip("the videos of these forms are no videos")
    seen = inspect_data(str(data), images=images)
    assert not seen.unusable
    assert dict(seen.unused) == expected["unused"]
    wanted = [lines for split in expected["conversations"].values() for lines in split]
    assert [told(one.sample) for one in seen.seen] == wanted
    convert(str(data), tmp_path / "out", images=images)
    back = open_data(str(tmp_path / "out"))
    texts = [[sample_texts(s) for s in source.samples] for source in back.values()]
    direct = open_data(str(data), reading=Reading(images=images))
    assert texts == [[sample_texts(s) for s in source.samples] for source in direct.values()]
    for split in expected["halves"]:
        assert load_samples(str(tmp_path / "out"), split)


def sample_texts(sample: Sample) -> list[tuple[str, str, int]]:
    return [(turn.role, turn.text, len(turn.content)) for turn in sample.turns]


def test_what_the_docs_say_to_type_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in FORMS:
        laid_out(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = docs.partition("## I have ...")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in re.findall(r"`(chiasm data inspect [^`]*)`", section)]
    assert len(commands) >= 12
    for _, _, _, data, *rest in commands:
        images = Path(rest[1]) if rest else None
        found = inspect_data(data, images=images)
        assert found.seen, data
        assert not found.unusable, data


def test_a_form_is_found_by_the_head_of_a_large_file(tmp_path: Path):
    """Detection reads no more of 3 GB than of 300 KB; the file is sparse after its records."""
    large = tmp_path / "large.jsonl"
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "?" * 2000}]}
    with large.open("wb") as file:
        file.write((json.dumps(row) + "\n").encode() * 150)
        file.truncate(3 * 2**30)
    tracemalloc.start()
    began = time.process_time()
    assert detect(large).name == "llava"
    taken, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1
    assert peak < 200e6


UNITS = ("real", "norm1", "norm1000", "resized", "loc", "florence")


@pytest.mark.parametrize("units", UNITS)
@given(
    st.tuples(st.integers(8, 3000), st.integers(8, 3000)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_boxes_of_any_units_stay_in_place(units: str, size: tuple, corners: tuple):
    """Read in their units, they are fractions of the image, to within a pixel or a step."""
    wide = [size[i % 2] for i in range(4)]
    left, right = sorted(corners[::2])
    top, bottom = sorted(corners[1::2])
    box = (left, top, right, bottom)
    half = tuple(max(1, n // 2) for n in size)
    if units == "loc":
        back = located(write_as(box, "loc"))[0].box  # type: ignore[union-attr]
    elif units == "florence":
        bins = [min(int(n * 1000), 999) for n in box]
        back = located("".join(f"<loc_{n}>" for n in bins))[0].box  # type: ignore[union-attr]
    else:
        scale = {"real": wide, "norm1": [1] * 4, "norm1000": [1000] * 4, "resized": half * 2}[units]
        pixels = [n * s for n, s in zip(box, scale, strict=True)]
        kind = "real" if units == "resized" else units
        given_size = half if units == "resized" else None
        image = Image(PIL.Image.new("L", size))
        back = box_text(Box(tuple(pixels), kind, 0, given_size), [image]).box
    step = {"loc": 0.5 / 1023, "florence": 0.5 / 1000}.get(units, 1e-9)
    for one, other, pixel in zip(back, box, wide, strict=True):
        assert abs(one - other) * pixel <= max(1.0, pixel * step * 1.01)


def test_captions_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    """Winoground: two images and two captions in one record."""
    row = {f"{kind}_{i}": f"{i}.png" for kind in ("image", "caption") for i in (0, 1)}
    with pytest.raises(DataError, match="which belongs to which is not told"):
        sample_of(row, tmp_path, "set", "x:1")
