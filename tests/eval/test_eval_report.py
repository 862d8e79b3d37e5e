import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest

from chiasm.core.errors import DataError
from chiasm.eval.report import render
from chiasm.eval.report.charts import Bar, Group, curve, grouped_bars, percent, smoothed

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects every attribute."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write(folder: Path, name: str, value) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = value if isinstance(value, list) else [value]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def route(accuracy: float, n: int = 200) -> dict:
    return {
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.01, accuracy + 0.01],
        "open_accuracy": accuracy - 0.05,
        "yes_no_accuracy": accuracy + 0.01,
        "n": n,
        "blind_accuracy": 0.5,
        "parse_failures": 1,
        "train_seconds": 75.0,
    }


@pytest.fixture
def full(tmp_path: Path) -> Path:
    image = PIL.Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "photo.png")
    unified = {
        **route(0.91),
        "psnr": 28.5,
        "code_usage": 0.9,
        "t2i_joint_accuracy": 0.875,
        "t2i_color_accuracy": 0.95,
        "t2i_shape_accuracy": 0.9,
        "t2i_distinct": 1.0,
        "t2i_best_of": 4,
        "t2i_first_joint_accuracy": 0.625,
        "t2i_per_caption": {"a red circle": 0.75, HOSTILE: 1.0},
    }
    write(
        tmp_path,
        "summary.json",
        {
            "wall_seconds": 700,
            "peak_memory_gb": 3.2,
            "mllm": route(0.97),
            "unified": unified,
            "encoder": {"zero_shot_accuracy": 0.98},
            "judge": {"accuracy": 0.999},
            "tokenizer": {"psnr": 28.5, "code_usage": 0.9, "codebook_perplexity": 300},
            "majority": {"accuracy": 0.4, "open_accuracy": 0.1, "yes_no_accuracy": 0.5},
            "versions": {"torch": "2.13.0", HOSTILE: HOSTILE},
            "settings": {"mllm": {"note": HOSTILE}},
            "data": {"name": "toy"},
        },
    )
    for model in ("encoder", "tokenizer", "mllm", "unified"):
        losses = [{"step": i, "stage": HOSTILE, "loss": 5 / (i + 1), "lr/x": 1} for i in range(20)]
        losses += [{"step": 20, "stage": HOSTILE, "loss": math.nan}, {"step": 20, "eval/x": 1}]
        write(tmp_path, f"{model}/metrics.jsonl", losses)
        stage = {
            "name": HOSTILE,
            "steps": 20,
            "seconds": 61,
            "tokens": 12345,
            "images": 99,
            "flops": 2.5e15,
            "trained_parameters": 10,
            "frozen_parameters": 134_515_008,
        }
        write(tmp_path, f"{model}/cost.json", {"stages": [stage, stage]})
    rows = [
        {
            "id": str(i),
            "image": "photo.png" if i else HOSTILE,
            "question": f"q{i} {HOSTILE}",
            "reference": "red",
            "reply": HOSTILE if i % 3 == 0 else "red",
            "parsed": 1,
            "correct": float(i % 3 != 0),
        }
        for i in range(12)
    ]
    rows.append(
        {
            "id": "e",
            "question": "q",
            "reference": "red",
            "reply": None,
            "parsed": None,
            "correct": None,
            "error": HOSTILE,
        }
    )
    for name in ("predictions", "blind"):
        write(tmp_path, f"mllm/{name}.jsonl", rows)
        write(
            tmp_path, f"unified/{name}.jsonl", [{**r, "reply": "red", "correct": 1} for r in rows]
        )
    (tmp_path / "unified" / "drawings").mkdir()
    for i in range(11):
        image.save(tmp_path / "unified" / "drawings" / f"a-red-circle-{i}.png")
    image.save(tmp_path / "tokenizer" / "reconstructions.png")
    return tmp_path


def test_a_full_report(full):
    path = render(full)
    assert path == full / "report.html"
    text = path.read_text()
    page = Page(text)
    for heading in (
        "at a glance",
        "answers come from",
        "model draws",
        "parts underneath",
        "training went",
        "What it cost",
        "Question by question",
        "was measured",
        "Exactly this run",
    ):
        assert heading in text
    for shown in (
        "97.0\u202f%",
        "91.0\u202f%",
        "28.5 dB",
        "87.5\u202f%",
        "11 min 40 s",
        "135\u202fM",
        "do not overlap, so the MLLM is ahead",
    ):
        assert shown in text
    assert text.count("<polyline") == 8
    images = [attrs for tag, attrs in page.seen if tag == "img"]
    assert len(images) == 6  # a sheet of drawings, the reconstructions, four questions
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images)


def test_it_asks_the_network_for_nothing(full):
    text = render(full).read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\(|@import|<link|<iframe|srcset", text)
    for _, attrs in Page(text).seen:
        for name in ("src", "href", "action", "poster"):
            assert attrs.get(name, "data:").startswith("data:")


def test_hostile_data_stays_text(full):
    page = Page(render(full).read_text())
    assert [tag for tag, _ in page.seen].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in page.seen for name in attrs)
    assert not any(attrs.get("src") == "x" for _, attrs in page.seen)


def test_the_filter_knows_what_went_wrong(full):
    page = Page(render(full).read_text())
    tags = [attrs["data-tags"].split() for _, attrs in page.seen if "data-tags" in attrs]
    assert len(tags) == 6  # four wrong, one failed, one right one of the single image
    assert sum("wrong" in one for one in tags) == 5
    assert sum("disagree" in one for one in tags) == 5
    shown = {a["data-show"] for _, a in page.seen if "data-show" in a}
    assert shown == {"all", "wrong", "disagree"}


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"mllm": None},
        {"mllm": {"accuracy": math.nan}},
        {"mllm": {"accuracy": 0.5}},
        {"unified": {"accuracy": 1}},
    ],
)
def test_a_minimal_report(tmp_path, summary):
    write(tmp_path, "summary.json", summary)
    text = render(tmp_path).read_text()
    Page(text)
    assert "Left out of this page: " in text
    assert "mllm/metrics.jsonl is missing" in text
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)


def test_damaged_files_become_notes(full):
    with (full / "mllm" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    (full / "mllm" / "cost.json").write_text("[]")
    (full / "tokenizer" / "reconstructions.png").write_bytes(b"no")
    (full / "unified" / "drawings" / "a-red-circle-0.png").write_bytes(b"no")
    text = render(full).read_text()
    Page(text)
    for note in (
        "1 unreadable line skipped",
        "mllm/cost.json is not a record of costs",
        "reconstructions.png could not be read",
        "1 image could not be read",
    ):
        assert note in text


def test_without_a_summary_there_is_no_report(tmp_path):
    with pytest.raises(DataError, match=r"summary\.json: no summary to report"):
        render(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        render(tmp_path)


def test_overlapping_intervals_are_no_victory(full):
    summary = json.loads((full / "summary.json").read_text())
    summary["mllm"]["accuracy_interval"] = [0.9, 0.99]
    write(full, "summary.json", summary)
    assert "neither is clearly ahead" in render(full).read_text()


def test_percent_never_rounds_an_error_away():
    assert percent(0.9996) == "99.96\u202f%"
    assert percent(1.0) == "100\u202f%"
    assert percent(0.5) == "50.0\u202f%"


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [5.0, -3.0], [1e-9, 1e6], [3.0, 3.5]])
def test_curves_stay_in_their_frame(values):
    svg = curve(list(enumerate(values)), "mllm", "loss")
    points = re.findall(r'points="([^"]+)"', svg)
    for x, y in (p.split(",") for line in points for p in line.split()):
        assert 0 <= float(x) <= 340
        assert 0 <= float(y) <= 190


def test_a_long_curve_is_thinned():
    points = [(float(i), 1 + 1 / (i + 1)) for i in range(20_000)]
    assert len(curve(points, "mllm", "loss")) < 20_000


def test_smoothing_keeps_the_ends_and_a_straight_line():
    assert smoothed([float(i) for i in range(100)]) == pytest.approx(range(100))


def test_bars_end_within_the_chart():
    svg = grouped_bars([Group("all", (Bar("mllm", "MLLM", 1.7), Bar("unified", "U", -1)), 0.4)])
    widths = [float(w) for w in re.findall(r'class="fill [^"]+"[^>]* width="([\d.]+)%"', svg)]
    assert widths == [80.0, 0.0]
