"""Made images: answers recomputed from the recorded contents, boxes against the pixels, halves
that share nothing, the same bytes for any number of workers."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiasm import cli
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.core.sample import Sample
from chiasm.data.boxes import read_box, write_box
from chiasm.data.degrade import scan
from chiasm.data.formats.messages import read_messages
from chiasm.data.load import load_samples
from chiasm.data.synthetic import documents, receipts
from chiasm.data.synthetic import make as making
from chiasm.data.synthetic.kind import Kind
from chiasm.data.synthetic.make import KINDS, distinct, make, make_sample
from chiasm.data.synthetic.scenes import COLORS
from chiasm.data.synthetic.split import TEST_SHARE, split_of
from chiasm.data.synthetic.words import SCRIPTS

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    """Six of every kind."""
    return {kind: [make_sample(kind, 3, n) for n in range(6)] for kind in KINDS}


def pairs(sample: Sample) -> list[tuple[str, str, str]]:
    """(type, question, answer), read back from the turns."""
    turns = sample.turns
    return [
        (kind, asked.text, reply.text)
        for kind, asked, reply in zip(sample.meta["types"], turns[::2], turns[1::2], strict=True)
    ]


def names(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, f"{pattern} does not fit {text}"
    return found.groups()


def chart_answer(content: dict, kind: str, asked: str) -> str:
    table = {
        (place, label): value
        for place, values in content["series"].items()
        for label, value in zip(content["labels"], values, strict=True)
    }
    place = next((p for p in content["series"] if asked.rstrip("?").endswith(p)), None)
    if kind == "total" and len(content["series"]) > 1:
        place = names(r"What do all values at (.*) add up to\?", asked)[0]
    if kind == "count above" and len(content["series"]) > 1:
        place = names(r"How many values at (.*) are above \d+\?", asked)[0]
    place = place or next(iter(content["series"]))
    column = {label: table[place, label] for label in content["labels"]}
    named = [x for x in content["labels"] if re.search(rf"\b{x}\b", asked)]
    if kind == "value":
        return str(column[named[0]])
    if kind in ("largest", "smallest"):
        ranked = sorted(column.items(), key=lambda item: item[1])
        return ranked[-1 if kind == "largest" else 0][0]
    if kind == "total":
        return str(sum(column.values()))
    if kind == "count above":
        bound = int(names(r".* above (\d+)\?", asked)[0])
        return str(sum(v > bound for v in column.values()))
    if kind == "difference":
        return str(abs(column[named[0]] - column[named[1]]))
    if kind == "compare":
        (label,) = names(r"Is the value of (.*) higher at .*", asked)
        return max(content["series"], key=lambda p: table[p, label])
    kinds = {"bar": "bar chart", "barh": "horizontal bar chart", "line": "line chart"}
    facts = {"title": content["title"], "unit": content["unit"]}
    return facts[kind] if kind in facts else kinds.get(content["chart"], "pie chart")


def table_answer(content: dict, kind: str, asked: str) -> str | None:
    head, rows = content["columns"], content["rows"]
    cell = {(row[0], name): row[i] for row in rows for i, name in enumerate(head)}
    products = [row[0] for row in rows]
    column = next((c for c in head[1:] if f" {c}" in asked), head[1])
    ranked = sorted(products, key=lambda p: int(cell[p, column]))
    if kind == "count above":
        bound = int(names(r".* above (\d+)\?", asked)[0])
        return str(sum(int(cell[p, column]) > bound for p in products))
    if kind == "cell":
        return cell[names(r".* of (\w+)\?", asked)[0], column]
    if kind == "lookup":
        number = names(r".* (\d+)\?", asked)[0]
        return next(p for p in products if cell[p, column] == number)
    return {
        "title": content["title"],
        "largest": ranked[-1],
        "smallest": ranked[0],
        "total": str(sum(int(cell[p, column]) for p in products)),
        "count rows": str(len(rows)),
        "head": ", ".join(head),
        "transcribe": "\n".join(" | ".join(line) for line in [head, *rows]),
    }.get(kind)


def receipt_answer(content: dict, kind: str, asked: str) -> str:
    costs = {i["name"]: i["count"] * i["price"] / 100 for i in content["items"]}
    named = next((n for n in costs if f" {n} " in asked), "")
    total = sum(costs.values())
    net = total / (1 + content["tax_percent"] / 100)
    count = {i["name"]: i["count"] for i in content["items"]}.get(named)
    return {
        "merchant": content["merchant"].upper(),
        "date": content["date"],
        "address": f"{content['street']}, {content['town']}",
        "number": str(content["number"]),
        "total": f"{total:.2f}",
        "currency": content["currency"],
        "tax": f"{total - net + 1e-9:.2f}",
        "payment": content["payment"],
        "price": f"{costs.get(named, 0):.2f}",
        "quantity": str(count),
        "dearest": sorted(costs, key=lambda n: costs[n])[-1],
        "count": str(len(costs)),
    }[kind]


def form_answer(content: dict, kind: str, asked: str) -> str | None:
    fields, ticked = content["fields"], [o for o, on in content["options"].items() if on]
    if kind == "field":
        return fields[names(r"What is filled in for (.*)\?", asked)[0]]
    if kind == "which field":
        (value,) = names(r"In which field does it say (.*)\?", asked)
        return next(name for name, v in fields.items() if v == value)
    if kind == "ticked":
        return "yes" if names(r"Is the box (.*) ticked\?", asked)[0] in ticked else "no"
    return {
        "title": content["title"],
        "count ticked": str(len(ticked)),
        "list ticked": ", ".join(ticked) or "none",
    }.get(kind)


def page_answer(content: dict, kind: str, asked: str) -> str | None:
    if kind == "field":
        return content["fields"][names(r"What does the field (.*) hold\?", asked)[0]]
    if kind == "switch":
        return "yes" if content["switches"][names(r"Is (.*) on\?", asked)[0]] else "no"
    return {
        "title": content["site"],
        "heading": content["heading"],
        "menu": ", ".join(content["menu"]),
        "tab": content["tab"],
        "count tabs": str(len(content["tabs"])),
        "list on": ", ".join(n for n, on in content["switches"].items() if on) or "none",
        "buttons": ", ".join(content["buttons"]),
    }.get(kind)


def scene_answer(content: dict, kind: str, asked: str) -> str | None:
    objects = content["objects"]
    words = re.findall(r"[a-z]+", asked.lower())
    singular = [w.removesuffix("es") if w == "crosses" else w.removesuffix("s") for w in words]
    words = ["cross" if w == "cros" else w for w in singular]
    colors = [w for w in words if w in COLORS]
    shapes = [w for w in words if w in ("circle", "square", "triangle", "cross")]
    if kind in ("left or right", "above or below"):
        one, other = (
            next(o for o in objects if (o["color"], o["shape"]) == look)
            for look in zip(colors, shapes, strict=True)
        )
        if kind == "left or right":
            return "left" if one["column"] < other["column"] else "right"
        return "above" if one["row"] < other["row"] else "below"
    if kind == "where":
        return None
    fits = [
        o
        for o in objects
        if (not colors or o["color"] in colors) and (not shapes or o["shape"] in shapes)
    ]
    return ("yes" if fits else "no") if kind == "exists" else str(len(fits))


def document_answer(content: dict, kind: str, asked: str) -> str | None:
    texts = content["paragraphs"]
    if kind == "paragraph":
        return texts[int(names(r"Transcribe paragraph (\d+)\.", asked)[0]) - 1]
    if kind == "order":
        one, other = names(r".* with (\S+) or with (\S+)\?", asked)
        starts = [t.split()[0] for t in texts]
        return min(one, other, key=starts.index)
    return {
        "title": content["title"],
        "language": content["language"],
        "count": str(len(texts)),
        "last word": texts[-1].rstrip(".").split()[-1],
        "transcribe": "\n\n".join([content["title"], *texts]),
    }.get(kind)


def slip_answer(content: dict, kind: str, asked: str) -> str | None:
    counts = {item["name"]: item["count"] for item in content["items"]}
    named = [word for word in re.findall(r"[a-z]+", asked) if word in counts]
    if kind == "exists":
        return "yes" if named else "no"
    if kind == "is shop":
        return "yes" if asked == f"is this the {content['shop']}?" else "no"
    if kind == "more":
        assert sorted(named) == sorted(counts)
        return sorted(named, key=counts.__getitem__)[-1]
    return {
        "shop": content["shop"],
        "paid": "yes" if content["paid"] else "no",
        "first": next(iter(counts)),
        "second": list(counts)[1],
        "count": str(counts[named[0]]) if named else None,
        "total": str(sum(counts.values())),
    }[kind]


ANSWERS = {
    "charts": chart_answer,
    "tables": table_answer,
    "receipts": receipt_answer,
    "forms": form_answer,
    "pages": page_answer,
    "scenes": scene_answer,
    "documents": document_answer,
    "slips": slip_answer,
}
BOXED = {"where", "what", "region"}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_recorded_content(kind, samples):
    assert set(ANSWERS) == set(KINDS)
    types = set()
    for sample in samples[kind]:
        content = json.loads(json.dumps(sample.meta["content"]))
        for type_, asked, reply in pairs(sample):
            types.add(type_)
            wanted = ANSWERS[kind](content, type_, asked)
            assert (wanted is None) == (type_ in BOXED), (type_, asked)
            if wanted is not None:
                assert reply == wanted, asked
    assert len(types) >= 7


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_is_asked_twice_and_no_answer_is_empty(kind, samples):
    for sample in samples[kind]:
        asked = [question for _, question, _ in pairs(sample)]
        assert len(set(asked)) == len(asked)
        assert all(reply.strip() for _, _, reply in pairs(sample))
        assert sample.independent
        assert sample.meta["caption"]


def test_boxes_in_answers_are_those_of_what_is_asked(samples):
    """Every box in words, of its thing's recorded box, to within its rounding."""
    checked = Counter()
    for kind in ("tables", "forms", "pages", "documents"):
        for sample in samples[kind]:
            size = sample.images[0].load().size
            boxes = sample.meta["boxes"]
            for type_, asked, reply in pairs(sample):
                if type_ not in BOXED:
                    continue
                said = read_box(reply if type_ == "where" else asked, size)
                name = thing_asked(kind, sample, asked, reply)
                assert np.allclose(said, boxes[name], atol=max(size) / 1000), (kind, asked)
                checked[kind] += 1
    assert all(checked[kind] >= 6 for kind in ("tables", "forms", "pages", "documents"))


def thing_asked(kind: str, sample: Sample, asked: str, reply: str) -> str:
    if kind == "tables":
        column, row = names(r"Where is the (\w+) of (\w+)\? .*", asked)
        return f"{row}/{column}"
    if kind == "forms":
        return names(r"Where is the box of (.*)\? .*", asked)[0]
    if kind == "pages":
        if asked.startswith("Which"):
            return f"button/{reply}"
        if "button" in asked:
            return f"button/{names(r'Where is the button (.*)[?] .*', asked)[0]}"
        return f"menu/{names(r'Where is (.*) in the menu[?] .*', asked)[0]}"
    texts = sample.meta["content"]["paragraphs"]
    if asked.startswith("Transcribe"):
        return str(texts.index(reply))
    first = names(r"Where is the paragraph that begins with (\S+)\? .*", asked)[0]
    return str([t.split()[0] for t in texts].index(first))


def ink(sample: Sample) -> np.ndarray:
    """[H W] where an image differs from its top left pixel."""
    pixels = np.asarray(sample.images[0].load()).astype(int)
    return np.abs(pixels - pixels[0, 0]).max(-1) > 8


def is_clean(sample: Sample) -> bool:
    return not ink(sample)[:3].any()  # a scanned copy has noise everywhere


@pytest.mark.parametrize("kind", ["charts", "tables", "receipts", "forms", "documents"])
def test_nothing_is_clipped(kind, samples):
    """The rim of a clean image is empty paper."""
    clean = [sample for sample in samples[kind] if is_clean(sample)]
    assert len(clean) >= 2
    for sample in clean:
        mask = ink(sample)
        rim = np.concatenate([mask[:3].ravel(), mask[-3:].ravel(), mask[:, :3].ravel(),
                              mask[:, -3:].ravel()])  # fmt: skip
        assert not rim.any(), sample.id


def test_all_ink_of_a_document_lies_in_its_boxes(samples):
    clean = [sample for sample in samples["documents"] if is_clean(sample)]
    for sample in clean:
        mask = ink(sample)
        for left, top, right, bottom in sample.meta["boxes"].values():
            where = np.s_[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            assert mask[where].any()
            mask[where] = False
        assert not mask.any()


def test_boxes_of_scenes_enclose_exactly_the_pixels_of_their_objects(samples):
    seen = 0
    for sample in samples["scenes"]:
        pixels = np.asarray(sample.images[0].load())
        objects = sample.meta["content"]["objects"]
        counted = Counter(o["color"] for o in objects)
        for n, thing in enumerate(objects):
            if counted[thing["color"]] == 1:
                rows, columns = np.nonzero((pixels == COLORS[thing["color"]]).all(-1))
                found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.allclose(found, sample.meta["boxes"][str(n)], atol=1)
                seen += 1
    assert seen >= 3


def test_lines_of_a_slip_stay_apart_and_inside(samples):
    """Each line's ink is in its sixteen rows, so that nothing small enough to be seen is cut."""
    for sample in samples["slips"]:
        assert sample.images[0].load().size == (64, 64)
        boxes = sample.meta["boxes"]
        for n, name in enumerate(("shop", "item/0", "item/1", "state")):
            left, top, right, bottom = boxes[name]
            assert left >= 2, name
            assert right <= 64, name
            assert 16 * n <= top < bottom <= 16 * (n + 1), name


def test_switches_look_as_recorded(samples):
    """The knob, the only white in the switch, stands right where it is on."""
    for sample in samples["pages"]:
        pixels = np.asarray(sample.images[0].load()).astype(int)
        for name, on in sample.meta["content"]["switches"].items():
            left, top, right, bottom = map(int, sample.meta["boxes"][f"switch/{name}"])
            middle = pixels[(top + bottom) // 2, left:right]
            white = np.nonzero((middle == 255).all(-1))[0]
            inner = white[(white > 1) & (white < right - left - 2)]
            assert (inner.mean() > (right - left) / 2) == on


def test_bars_have_the_heights_of_the_table():
    from matplotlib.figure import Figure

    from chiasm.data.synthetic import charts

    for n in range(40):
        content = charts.draw(Random(n))
        if content["chart"] in ("bar", "barh"):
            axes = Figure().add_subplot()
            charts._axes(axes, content, Random(n))
            side = "get_height" if content["chart"] == "bar" else "get_width"
            drawn = [[getattr(bar, side)() for bar in group] for group in axes.containers]
            assert drawn == list(content["series"].values())


def test_every_letter_has_a_glyph_in_every_font_it_is_set_in():
    font_tools = pytest.importorskip("fontTools.ttLib")
    import matplotlib

    from chiasm.data.synthetic.fonts import FAMILIES

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for family, files in FAMILIES.items():
        for file in files:
            covered = font_tools.TTFont(folder / file).getBestCmap()
            for language, words in SCRIPTS.items():
                if family == "stix" and language not in documents.STIX:
                    continue
                letters = set(words) | {w[0].title() for w in words.split()}
                assert not {c for c in letters if ord(c) not in covered}, (family, language)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_share_no_key_and_no_content_comes_twice(kind):
    chosen = distinct(kind, 0, {"train": 300, "test": 30})
    drawn = {
        half: [KINDS[kind].draw(making._random(kind, 0, index, "draw")) for index in indices]
        for half, indices in chosen.items()
    }
    keys = {half: {KINDS[kind].key(c) for c in contents} for half, contents in drawn.items()}
    assert not keys["train"] & keys["test"]
    every = [json.dumps(c, sort_keys=True) for contents in drawn.values() for c in contents]
    assert len(set(every)) == 330


def test_halves_of_different_seeds_share_no_key():
    def keys(seed: int, half: str) -> set[str]:
        indices = distinct("receipts", seed, {"train": 60, "test": 60})[half]
        return {
            receipts.key(receipts.draw(making._random("receipts", seed, i, "draw")))
            for i in indices
        }

    assert not keys(0, "train") & keys(1, "test")
    assert not keys(1, "train") & keys(0, "test")


def test_the_share_of_test_keys_is_as_stated():
    halves = Counter(split_of("k", str(n)) for n in range(20_000))
    # four standard deviations of a binomial share
    assert abs(halves["test"] / 20_000 - TEST_SHARE) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


def contents_of(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_same_bytes_for_one_and_two_workers_others_for_another_seed(tmp_path):
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        make("scenes", tmp_path / name, 20, seed, workers, silent)
    one = contents_of(tmp_path / "one")
    assert len(one) == 2 + 22
    assert one == contents_of(tmp_path / "two")
    assert not set(one) & set(contents_of(tmp_path / "other")) - {"train.jsonl", "test.jsonl"}


def test_the_command_makes_a_set_that_loads(tmp_path, capsys):
    cli.main(
        ["data", "synthesize", "tables", "-o", str(tmp_path / "t"), "--count", "4", "--seed", "2"]
    )
    assert "train: 4 samples" in capsys.readouterr().out
    train = load_samples(str(tmp_path / "t"), "train")
    test = load_samples(str(tmp_path / "t"), "test")
    assert (len(train), len(test)) == (4, 1)
    made = make_sample("tables", 2, int(train[0].id.rsplit("-", 1)[1]))
    assert pairs(train[0]) == pairs(made)
    assert train[0].images[0].load().tobytes() == made.images[0].load().tobytes()
    assert {s.meta["key"] for s in train}.isdisjoint(s.meta["key"] for s in test)
    assert not Path(json.loads((tmp_path / "t/train.jsonl").open().readline())["images"][0]
                    ).is_absolute()  # fmt: skip


def test_what_cannot_be_made_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'charts'"):
        make("chart", tmp_path / "a", 1)
    with pytest.raises(ConfigError, match="at least 1"):
        make("charts", tmp_path / "a", 0)
    make("scenes", tmp_path / "b", 1, show=silent)
    with pytest.raises(DataError, match="exists already"):
        make("scenes", tmp_path / "b", 1, show=silent)
    assert len(read_messages(tmp_path / "b")) == 1
    scene = KINDS["scenes"]
    few = Kind(lambda random: {"n": random.randint(1, 20)}, lambda content: str(content["n"]),
               scene.render, scene.ask, scene.caption)  # fmt: skip
    monkeypatch.setitem(making.KINDS, "few", few)
    with pytest.raises(DataError, match="nothing new"):
        make("few", tmp_path / "c", 30, show=silent)


def test_a_scan_keeps_size_and_text_place_and_is_a_function_of_its_seed():
    sample = make_sample("documents", 3, 1)
    page = sample.images[0].load()
    one, same, other = (scan(page, Random(seed), skew=0) for seed in (1, 1, 2))
    assert one.size == page.size
    assert one.tobytes() == same.tobytes() != other.tobytes()
    dark = [np.asarray(p.convert("L")).astype(float) for p in (page, one)]
    assert np.corrcoef(dark[0].ravel(), dark[1].ravel())[0, 1] > 0.5
    assert np.abs(dark[0] - dark[1]).mean() > 1


@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
def test_boxes_survive_being_written(fractions, size):
    left, right = sorted(x * size[0] for x in fractions[::2])
    top, bottom = sorted(y * size[1] for y in fractions[1::2])
    box = (left, top, right, bottom)
    read = read_box(f"It is at {write_box(box, size)}.", size)
    assert np.allclose(np.array(read)[::2], (left, right), atol=size[0] / 2000 + 1e-9)
    assert np.allclose(np.array(read)[1::2], (top, bottom), atol=size[1] / 2000 + 1e-9)


def test_text_without_a_box_is_an_error():
    with pytest.raises(DataError, match="holds no box"):
        read_box("on the left", (10, 10))


@pytest.mark.slow
def test_a_made_set_trains_the_unified_route(tmp_path):
    data, tokenizer, out = (str(tmp_path / name) for name in ("docs", "tokenizer", "unified"))
    make("documents", tmp_path / "docs", 12, show=silent)
    cli.main(["train", "tokenizer", "--data", data, "--out", tokenizer, "--stages.0.steps", "3",
              "--stages.0.batch_images", "4", "--model.decoder_channels", "64",
              "--model.decoder_blocks", "1"])  # fmt: skip
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 64}
    settings = [f"--model.{name}={value}" for name, value in sizes.items()]
    for stage in range(6):
        settings += [f"--stages.{stage}.steps=3", f"--stages.{stage}.batch_tokens=256"]
    cli.main(["train", "unified_nano", "--data", data, "--out", out, *settings,
              "--model.tokenizer", tokenizer])  # fmt: skip
    rows = [json.loads(x) for x in (tmp_path / "unified/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses
    assert np.isfinite(losses).all()
