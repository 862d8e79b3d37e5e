"""chiasm plan --plot."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from chiasm.cli import main
from chiasm.recipes.rates import curves, rows, svg
from chiasm.train.schedule import factor
from chiasm.train.stage import Stage

STAGES = (
    Stage("align", 20, {"projector": 1e-3}, schedule="cosine"),
    Stage(
        "tune",
        30,
        {"projector": 5e-4, "language_model": 1e-4},
        schedule="constant",
        warmup_ratio=0.1,
    ),
)


def test_curves_run_over_all_stages_and_are_zero_where_frozen():
    found = curves(STAGES)
    assert [step for step, _ in found["language_model"]] == list(range(50))
    assert all(rate == 0 for _, rate in found["language_model"][:20])
    expected = [1e-3 * factor(STAGES[0], t) for t in range(20)]
    expected += [5e-4 * factor(STAGES[1], t) for t in range(30)]
    assert [rate for _, rate in found["projector"]] == pytest.approx(expected)


def test_the_image_draws_the_curves_to_scale():
    tree = ElementTree.fromstring(svg(STAGES))
    lines = [e for e in tree.iter() if e.tag.endswith("polyline")]
    found = curves(STAGES)
    assert len(lines) == len(found)
    heights = []
    for line in lines:
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        heights.append([y for _, y in points])
        assert [x for x, _ in points] == sorted(x for x, _ in points)
    low = max(heights[1])  # where the language model is frozen
    scale = [(low - y) for y in heights[0][:50]]
    rate = [r for _, r in found["projector"]]
    assert [s / max(scale) for s in scale] == pytest.approx([r / max(rate) for r in rate], abs=2e-3)
    said = {e.text for e in tree.iter() if e.tag.endswith("text")}
    assert {"align", "tune", "projector", "language_model", "step 50"} <= said


def test_the_terminal_shows_one_line_a_group():
    projector, language = rows(STAGES, width=10)
    assert "peak 0.001" in projector
    marks = language.split("language_model ")[1].split(" peak")[0]
    assert marks[:4] == "    "
    assert marks[-1] == "█"


def test_the_command_draws_a_recipe_with_its_overrides(tmp_path, capsys):
    image = tmp_path / "rates.svg"
    schedule = ["--stages.0.schedule", "wsd", "--stages.0.steps", "40"]
    main(["plan", "tokenizer", "--plot", "--out", str(image), *schedule])
    said = capsys.readouterr().out
    assert "40 steps" in said
    assert "wsd" in said
    assert re.search("encoder .*█.* peak 0.002", said)
    assert image.read_text().startswith("<svg")
    main(["plan", "tokenizer", "--out", str(tmp_path / "none.svg")])
    assert not (tmp_path / "none.svg").exists()
