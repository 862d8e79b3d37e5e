"""Published files, one folder each in tests/data/forms: the shape is the published one, the content
our own. expected.json has the conversations as a person reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from chiasm.core.sample import Sample, Text, Video
from chiasm.data.convert import convert
from chiasm.data.dataset import read
from chiasm.data.formats.reading import Reading
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.load import load_samples, open_data
from chiasm.data.quarantine import Quarantine
from chiasm.eval.task import QuestionTask
from chiasm.recipes.asked import Asked

FORMS = sorted(path.parent for path in (Path(__file__).parent / "forms").glob("*/expected.json"))


@pytest.fixture(params=FORMS, ids=lambda path: path.name)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path | None, dict]:
    """(the data, the folder of its images, what is expected), with images where they belong."""
    root = shutil.copytree(request.param, tmp_path / request.param.name)
    expected = json.loads((root / "expected.json").read_text(encoding="utf-8"))
    (root / "expected.json").unlink()
    for name in expected["media"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".mp4"):
            (root / name).write_bytes(b"not decoded here")
        else:
            PIL.Image.new("RGB", (40, 20), "red").save(root / name)
    images = root / expected["images"] if expected["images"] else None
    return root / expected["data"], images, expected


def told(sample: Sample) -> list[str]:
    """A line a message: its role and content, images by the names of their files."""

    def part(one: Any) -> str:
        if isinstance(one, Text):
            return one.text
        source = one.path if isinstance(one, Video) else one.source
        return f"[{source.name}]" if isinstance(source, Path) else "[bytes]"

    return [f"{turn.role}: {''.join(map(part, turn.parts))}" for turn in sample.turns]


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
    return [(turn.role, turn.text, len(turn.parts)) for turn in sample.turns]
