"""Paired tests against brute force and closed forms; comparisons and duels on made-up scores."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import DataError
from chiasm.eval.compare import Bill, ModelResult, compare
from chiasm.eval.duel import RunResult, conclusions, in_short, judge
from chiasm.eval.metrics.paired import (
    holm,
    mcnemar_exact,
    paired_bootstrap,
    student_p,
    student_quantile,
)
from chiasm.eval.report.compared import render_comparison, verdict
from chiasm.eval.report.duelled import render_duel
from chiasm.eval.report.plane import Point, Series, plane

HOSTILE = '"><script>alert(1)</script>'


@pytest.mark.parametrize(("b", "c"), itertools.product(range(6), range(6)))
def test_mcnemar_is_the_share_of_coin_throws_at_least_as_uneven(b, c):
    throws = list(itertools.product((0, 1), repeat=b + c))
    as_uneven = sum(abs(2 * sum(t) - len(t)) >= abs(b - c) for t in throws)
    assert mcnemar_exact(b, c) == pytest.approx(as_uneven / len(throws))


def test_mcnemar_of_thousands_is_a_number():
    assert mcnemar_exact(5000, 5000) == 1
    assert 0 < mcnemar_exact(4800, 5200) < 1e-4
    assert mcnemar_exact(0, 5000) < 1e-300


def test_holm_by_hand():
    # 3 tests: 0.01·3, then max(0.03, 0.02·2), then max(0.04, 0.03·1)
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_students_t_by_closed_forms_and_tables():
    for t in (0.0, 0.3, 1.0, 4.0, 30.0):
        assert student_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-7)
        assert student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-7)
    for degrees, value in ((2, 4.3027), (4, 2.7764), (10, 2.2281), (120, 1.9799)):
        assert student_quantile(degrees) == pytest.approx(value, abs=1e-3)


def test_paired_bootstrap_of_equal_scores_and_of_sure_ones():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == ((0, 0), 1.0)
    rng = np.random.default_rng(0)
    first = rng.random(300)
    (low, high), p = paired_bootstrap(first, first + 0.1 + 0.05 * rng.standard_normal(300))
    assert 0.09 < low < 0.1 < high < 0.11
    assert p < 0.001


def test_paired_bootstrap_agrees_with_its_normal_limit():
    rng = np.random.default_rng(1)
    first = rng.random(400)
    second = first + 0.02 + 0.2 * rng.standard_normal(400)
    _, p = paired_bootstrap(first, second, rounds=5_000)
    d = second - first
    z = d.mean() / (d.std() / 20)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


def test_paired_bootstrap_by_groups_is_wider():
    rng = np.random.default_rng(2)
    d = np.repeat(rng.standard_normal(40), 10)
    zero = np.zeros(400)
    alone, _ = paired_bootstrap(zero, d)
    grouped, _ = paired_bootstrap(zero, d, np.repeat(np.arange(40), 10).tolist())
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def contender(name, scores, folder: Path | None = None, bill=Bill(), **more):  # noqa: B008
    records = {}
    for i, score in enumerate(scores):
        records[f"q{i}"] = {
            "id": f"q{i}",
            "image": str(folder / "p.png") if folder and i == 0 else f"/nowhere/{i}.png",
            "question": f"what is {i}? {HOSTILE}",
            "reference": "yes",
            "category": f"kind {i % 2}",
            "reply": "yes" if score == 1 else f"no {HOSTILE}",
            "finish": "stop",
            "parsed": 1,
            "correct": score,
            **more,
        }
    return ModelResult(name, records, bill)


def test_a_clear_difference_is_told_and_a_small_one_is_not():
    rng = np.random.default_rng(0)
    low = (rng.random(400) < 0.5).astype(float).tolist()
    near = [1 - x if i in (3, 70) else x for i, x in enumerate(low)]
    high = [max(x, float(rng.random() < 0.6)) for x in low]
    found = compare([contender("low", low), contender("near", near), contender("high", high)])
    winners = {(p.first, p.second): p.winner for p in found.pairs}
    assert winners == {("low", "near"): None, ("low", "high"): "high", ("near", "high"): "high"}
    pair = next(p for p in found.pairs if (p.first, p.second) == ("low", "high"))
    assert pair.test == "McNemar"
    assert pair.only_first == 0
    assert pair.only_second == round(pair.difference * 400)
    assert pair.adjusted >= pair.p
    assert [kind.name for kind in found.categories] == ["kind 0", "kind 1"]
    assert sum(kind.scores[0].n for kind in found.categories) == 400
    assert len(found.disagreements) > 50
    said = verdict(found, "toy")
    assert "high is better than low" in said
    assert "cannot tell low and near" in said


def test_fractions_are_compared_by_bootstrap_and_unanswered_questions_left_out():
    a, b = contender("a", [0.5, 1, 0.25, 1]), contender("b", [0.5, 1, 0.75, 1])
    b.records["q3"]["correct"] = None
    found = compare([a, b])
    assert found.questions == ("q0", "q1", "q2")
    assert found.left_out == 1
    assert found.pairs[0].test == "bootstrap"
    assert found.pairs[0].difference == pytest.approx(0.5 / 3)


def test_questions_of_one_image_count_as_one():
    """A lead that all stands on one image is significant to McNemar's test, not to us."""
    first = contender("a", [0.0] * 30 + [1.0] * 30)
    second = contender("b", [1.0] * 60)
    for side in (first, second):
        for i in range(60):
            side.records[f"q{i}"]["image"] = "/one.png" if i < 30 else f"/{i}.png"
    pair = compare([first, second]).pairs[0]
    assert pair.p < 1e-6
    assert pair.winner is None


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a"], "needs two models"), (["a", "a"], "same name")],
)
def test_what_cannot_be_compared_is_told(names, words):
    with pytest.raises(DataError, match=words):
        compare([contender(name, [1.0]) for name in names])


def test_no_question_in_common_is_told():
    with pytest.raises(DataError, match="no answered question in common"):
        compare([contender("a", [1.0]), ModelResult("b", {})])


def test_the_page_of_a_comparison_stands_alone_and_shows_images(tmp_path):
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    rng = np.random.default_rng(0)
    sides = [
        contender(
            f"m{i}{HOSTILE}",
            (rng.random(60) < 0.5 + 0.2 * i).astype(float).tolist(),
            tmp_path,
            Bill(1e12 * (i + 1), 60.0, 2e9),
        )
        for i in range(3)
    ]
    for side in sides:
        side.records["q0"]["correct"] = float(side is sides[0])
    page = render_comparison(compare(sides), "toy", "accuracy", tmp_path / "o" / "c.html")
    text = page.read_text()
    assert "<script>alert" not in text
    assert 'src="http' not in text
    assert "href=" not in text
    assert "data:image/png;base64" in text
    for words in ("Where they disagree", "What it cost", "Kind by kind", "2\u202fGB", "1e+12"):
        assert words in text


def trials(arm, budget, means, questions=200, noise=0.0):
    found = []
    for seed, mean in enumerate(means):
        rng = np.random.default_rng([seed, round(1000 * mean), len(arm)])
        scores = (rng.random(questions) < mean).astype(float)
        found.append(
            RunResult(arm, budget, seed, budget * (1 + noise), 1.0, 1e9, tuple(scores), {"x": 3})
        )
    return found


def test_a_duel_tells_winners_and_when_it_cannot():
    runs = [
        *trials("a", 1e12, (0.50, 0.52, 0.51), 2000),
        *trials("b", 1e12, (0.51, 0.49, 0.53), 2000),
        *trials("a", 2e12, (0.60, 0.61, 0.62), 2000),
        *trials("b", 2e12, (0.91, 0.90, 0.92), 2000),
    ]
    outcome = judge(runs, list(range(2000)), {("c", 1e12): "too small"})
    first, second = outcome.bouts
    assert (first.budget, first.winner) == (1e12, None)
    assert (second.budget, second.winner) == (2e12, "b")
    assert second.interval[0] < 0.3 < second.interval[1]
    assert first.detectable > abs(first.difference)
    said = " ".join(conclusions(outcome))
    assert "at 1e+12 FLOPs we cannot tell" in said
    assert "at 2e+12 FLOPs b wins by" in said
    assert "c at 1e+12 FLOPs could not be run: too small." in said
    assert "off its budget" not in said
    assert in_short(outcome) == "At 2e+12 FLOPs b beats a."


def test_a_run_off_its_budget_is_named():
    runs = [*trials("a", 1e12, (0.5, 0.6), noise=0.03), *trials("b", 1e12, (0.5, 0.6))]
    assert "a, seed 0, ended +3.0% off" in " ".join(conclusions(judge(runs, list(range(200)))))


def test_intervals_of_a_duel_cover_the_truth_as_often_as_they_say():
    """Seeds and images drawn anew: 95 % intervals of the difference hold it about as often."""
    rng, held, rounds = np.random.default_rng(0), 0, 200
    for _ in range(rounds):
        ease = np.repeat(rng.normal(0, 0.5, 60), 3)  # of images, shared by both arms
        runs = []
        for arm, level in (("a", 0.0), ("b", 0.4)):
            for seed in range(3):
                own = ease + level + rng.normal(0, 0.15) + rng.normal(0, 0.3, 180)
                runs.append(RunResult(arm, 1.0, seed, 1.0, 0.0, 0.0, tuple(own), {}))
        bout = judge(runs, [i // 3 for i in range(180)]).bouts[0]
        held += bout.interval[0] <= 0.4 <= bout.interval[1]
    assert 0.92 <= held / rounds <= 0.995


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (lambda: trials("a", 1.0, (0.5,)), "one seed"),
        (lambda: trials("a", 1.0, (0.5, 0.6), 100), "different questions"),
    ],
)
def test_a_duel_needs_seeds_and_the_same_questions(runs, words):
    with pytest.raises(DataError, match=words):
        judge([*runs(), *trials("b", 1.0, (0.5, 0.6))], list(range(200)))


def test_the_page_of_a_duel_stands_alone(tmp_path):
    runs = [
        t
        for arm, base in (("a", 0.5), ("b", 0.7))
        for i, budget in enumerate((1e12, 2e12, 4e12))
        for t in trials(arm, budget, [base + 0.05 * i + 0.01 * s for s in range(3)])
    ]
    outcome = judge(runs, list(range(200)))
    record = {"data": HOSTILE, "questions": 200, "versions": {"torch": "2"}, "settings": {"x": 1}}
    page = render_duel(outcome, {"a": f"A {HOSTILE}"}, "accuracy", record, tmp_path / "r.html")
    text = page.read_text()
    assert "<script>alert" not in text
    assert text.count('<circle class="mean') == 6
    assert text.count('<circle class="dot') == 18
    json.dumps(conclusions(outcome))


def test_a_plane_keeps_its_points_inside():
    point = Point(3e12, 0.97, (0.9, 1.0), ((3e12, 1.0),))
    svg = plane([Series("m0", "x", (point, Point(5e13, 0.2)))], "said")
    import re

    numbers = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert all(0 <= y <= 300 for y in numbers)
    assert plane([], "said") == ""
