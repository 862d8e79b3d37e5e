"""Each rule leaves out what it is for and keeps what is near it; every drop has its reason."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont
import pytest

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.filters.agreement import Agreement
from chiasm.data.filters.blur import sharpness
from chiasm.data.filters.contamination import Contamination
from chiasm.data.filters.run import DROPPED, REPORT, RULES, filter_data, rule_of
from chiasm.data.fingerprint import fingerprint
from chiasm.data.formats.messages import read_messages, write_messages
from chiasm.data.language import NONE, language, script


def scene(seed: int, size: tuple[int, int] = (128, 96)) -> PIL.Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize(size, PIL.Image.Resampling.BICUBIC)


def jpeg(image: PIL.Image.Image) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return PIL.Image.open(buffer)


def ask(image: PIL.Image.Image | None, words: str, reply: str, name: str = "x") -> Sample:
    shown = [Image(image)] if image else []
    return Sample((user(*shown, words), assistant(reply)), name)


def verdicts(rule: str, *samples: Sample) -> list[bool]:
    """Which samples the rule leaves out, in order."""
    _, made = rule_of(rule)
    return [made.reason(sample) is not None for sample in samples]


def test_exact_duplicates():
    first = ask(scene(0), "Which?", "Red.", "a")
    others = [
        ask(scene(0), "Which?", "Red.", "b"),
        ask(scene(1), "Which?", "Red."),
        ask(scene(0), "Which?", "Blue."),
        ask(scene(0), "", "Which?Red."),
    ]
    assert verdicts("exact-duplicate", first, first, *others) == [
        False, True, True, False, False, False
    ]  # fmt: skip


def test_near_duplicates():
    long = "a red block beside a blue one and a green one below them"
    assert verdicts(
        "near-duplicate",
        ask(scene(0), "What is shown?", long),
        ask(jpeg(scene(0)), "What is shown?", f"{long}!".title()),
        ask(scene(0), "How many blocks are there in the image?", "48"),
        ask(scene(1), "What is shown?", long),
        ask(None, "What is shown?", long),
        ask(None, "what is shown", long.upper()),
        ask(None, "", ""),
    ) == [False, True, False, False, False, True, False]  # fmt: skip


def table(numbers: list[int]) -> PIL.Image.Image:
    """The same table with other numbers: images that differ in little else."""
    image = PIL.Image.new("RGB", (240, 160), "white")
    draw = PIL.ImageDraw.Draw(image)
    font = PIL.ImageFont.load_default(18)
    draw.rectangle((0, 0, 239, 38), fill="#3a7")
    for row, number in enumerate(numbers):
        draw.line((0, 40 * row + 39, 239, 40 * row + 39), "#555")
        draw.text((12, 40 * row + 8), ("Day", "Monday", "Tuesday", "Friday")[row], "black", font)
        draw.text((170, 40 * row + 8), str(number), "black", font)
    return image


def test_tables_of_other_numbers_are_no_doubles():
    random = np.random.default_rng(0)
    tables = [table(random.integers(0, 100, 4).tolist()) for _ in range(12)]
    near = [[fingerprint(a).near(fingerprint(jpeg(b))) for b in tables] for a in tables]
    np.testing.assert_array_equal(near, np.eye(12, dtype=bool))


def test_tables_are_found_again_in_other_sizes():
    random = np.random.default_rng(0)
    tables = [table(random.integers(0, 100, 4).tolist()) for _ in range(12)]
    for scale in (0.5, 0.75, 1.5):
        size = round(240 * scale), round(160 * scale)
        copies = [fingerprint(jpeg(one.resize(size))) for one in tables]
        near = [[fingerprint(one).near(copy) for copy in copies] for one in tables]
        np.testing.assert_array_equal(near, np.eye(12, dtype=bool))


def test_fingerprints_are_near_for_copies_and_far_for_others():
    prints = [fingerprint(scene(i)) for i in range(40)]
    copies = [fingerprint(jpeg(scene(i))) for i in range(40)]
    near = np.array([[a.near(b) for b in copies] for a in prints])
    np.testing.assert_array_equal(near, np.eye(40, dtype=bool))
    red, green = (PIL.Image.new("RGB", (64, 64), c) for c in ((120, 0, 0), (0, 61, 0)))
    assert not fingerprint(red).near(fingerprint(green))  # of one grey level
    assert fingerprint(red).near(fingerprint(jpeg(red)))


def test_sizes_aspects_and_blank_images():
    sizes = [ask(scene(0, size), "?", "!") for size in ((15, 100), (16, 16), (100, 9), (200, 100))]
    assert verdicts("size:least=16,most=150", *sizes) == [True, False, True, True]
    assert verdicts("aspect:most=4", *sizes) == [True, False, True, False]
    blank = PIL.Image.new("RGB", (64, 64), "white")
    blank.putpixel((3, 3), (0, 0, 0))
    assert verdicts("entropy", ask(blank, "?", "!"), ask(scene(0), "?", "!"),
                    ask(None, "?", "!")) == [True, False, False]  # fmt: skip


def test_blur():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    sharp = PIL.Image.fromarray(noise)
    soft = sharp.filter(PIL.ImageFilter.GaussianBlur(12))
    assert verdicts("blur", ask(sharp, "?", "!"), ask(soft, "?", "!")) == [False, True]
    grey = np.asarray(sharp.convert("L"), np.float64)
    values = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, grey.shape[0] - 1)
        for x in range(1, grey.shape[1] - 1)
    ]
    assert sharpness(sharp) == pytest.approx(np.var(values), rel=1e-4)
    assert sharpness(PIL.Image.new("L", (2, 9))) == 0


def test_texts():
    said = [ask(None, "?", reply) for reply in (" ", "ok", "word " * 50)]
    assert verdicts("length:least=2,most=100", *said) == [True, False, True]
    loop = "the cat sat on the mat and " * 6
    fine = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert verdicts("repetition", *(ask(None, "?", t) for t in (loop, fine, "no no no no"))) == [
        True, False, False
    ]  # fmt: skip


def test_languages():
    assert language("123 !") == NONE
    assert (script("Привет"), script("漢字 kanji 漢字漢字"), script("ok")) == (
        "Cyrillic script", "Han script", "Latin script"
    )  # fmt: skip
    german = ask(None, "Was ist auf diesem Bild zu sehen?", "Ein Hund läuft über die Wiese.")
    english = ask(None, "What is shown in this image?", "A dog is running over the meadow.")
    short = ask(None, "?", "9")
    assert verdicts("language:keep=Cyrillic script", german, english) == [True, True]
    assert verdicts("language:keep=Latin script", german, english, short) == [False] * 3
    pytest.importorskip("py3langid")
    assert verdicts("language:keep=en", german, english, short) == [True, False, False]
    assert verdicts("language:keep=en+de", german, english, short) == [False] * 3


def test_agreement_asks_the_given_score():
    asked: list[str] = []

    def score(image: PIL.Image.Image, text: str) -> float:
        asked.append(text)
        return {"good": 0.5, "bad": 0.1}[text]

    rule = Agreement(least=0.3, score=score)
    assert rule.reason(ask(scene(0), "?", "good")) is None
    assert rule.reason(ask(scene(0), "?", "bad")) == "caption and image agree by 0.100, under 0.3"
    assert rule.reason(ask(None, "?", "bad")) is None
    assert asked == ["good", "bad"]
    with pytest.raises(ConfigError, match="write agreement:model=RUNS/ENCODER"):
        Agreement().reason(ask(scene(0), "?", "good"))


def test_contamination(tmp_path: Path):
    secret = "the first words of a test text that nobody may see before the test is over"
    test = [ask(scene(0), "What is the total?", "9", "t0"), ask(None, "?", secret, "t1")]
    write_messages(test, tmp_path / "test.jsonl")
    rule = Contamination(str(tmp_path))
    assert rule.reason(ask(jpeg(scene(0)), "Other?", "!")) == (
        "shows the image of the test sample t0"
    )
    assert "t1" in (rule.reason(ask(None, "?", f"Now: {secret.upper()}.")) or "")
    assert rule.reason(ask(scene(1), "What is the total?", "9")) is None
    with pytest.raises(ConfigError, match="contamination:test=PATH"):
        rule_of("contamination")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blurr", "no such rule; did you mean 'blur'"),
        (
            "size:leest=3",
            "'leest=3' is no setting of it; did you mean 'least'?; known: least, most",
        ),
        ("size:least=x", "least=x is no number"),
        ("size:least", "is no setting of it"),
        ("agreement:score=1", "is no setting of it"),
        ("exact-duplicate:x=1", "known: none"),
    ],
)
def test_wrong_rules_are_explained(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        rule_of(text)
    assert message in str(caught.value)


def test_every_drop_is_counted_and_listed(tmp_path: Path):
    src = tmp_path / "src"
    kept = [ask(scene(i), f"What is in image {i}?", f"blocks {i}", f"k{i}") for i in range(4)]
    bad = [kept[0].replace(id="again"), ask(scene(9, (60, 3)), "?", "a strip", "strip"),
           ask(scene(10), "?", "", "silent")]  # fmt: skip
    write_messages([*kept, *bad], src / "train.jsonl")
    write_messages([ask(scene(20), "?", "!", "t")], src / "test.jsonl")
    with (src / "train.jsonl").open("a") as file:
        file.write("no JSON\n")
    before = {p.name: p.read_bytes() for p in (src / "images").iterdir()}
    rules = [rule_of(text) for text in ("exact-duplicate", "size", "length", "blur:least=0")]
    done = filter_data(str(src), tmp_path / "out", rules)
    assert done.kept == {"train": 4, "test": 1}
    assert done.dropped == {"exact-duplicate": 1, "size": 1, "length": 1, "blur": 0}
    rows = [json.loads(line) for line in (tmp_path / "out" / DROPPED).read_text().splitlines()]
    assert [(r["id"], r["rule"], r["split"]) for r in rows] == [
        ("again", "exact-duplicate", "train"), ("strip", "size", "train"),
        ("silent", "length", "train"),
    ]  # fmt: skip
    assert rows[0]["reason"] == "the same as k0"
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert (report["kept"], report["unusable"]) == ({"train": 4, "test": 1}, 1)
    back = read_messages(tmp_path / "out")
    assert [s.id for s in back] == [s.id for s in kept]
    # Images are copied as they are, not encoded again.
    assert {s.images[0].encoded() for s in back} <= {*before.values()}
    with pytest.raises(DataError, match="no sample passes"):
        filter_data(str(src), tmp_path / "none", [rule_of("length:least=999")])


def test_all_rules_have_names():
    assert len(RULES) == 11
    assert len({*RULES.values()}) == 11
