import math
from math import comb

import numpy as np
import PIL.Image
import pytest

from chiasm.eval.metrics.image import distinct, psnr
from chiasm.eval.metrics.interval import bootstrap_mean, mean_interval, wilson
from chiasm.eval.metrics.vqa import exact_match, fold, match_closed

COLORS = ("yes", "no", "red", "blue", "gray")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Yes.", "yes"),
        ("  **Yes!** ", "yes"),
        ("A circle", "circle"),
        ("the\nred  circle.", "red circle"),
        ("12%", "12"),
        ("1,200", "1200"),
        ("1,200,300.5", "1200300.5"),
        ("red,blue", "red blue"),
        ("Two", "2"),
        ("none", "0"),
        ("don't", "dont"),
        ("don’t", "dont"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("well-known", "well known"),
        ("2008-2010", "2008 2010"),
        ("3.14.", "3.14"),
        ("A", "a"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_fold(text, folded):
    assert fold(text) == folded


def test_folding_twice_changes_nothing():
    for text in ("Yes.", "12%", "1,200", "**a** red-ish thing", "-5 °C"):
        assert fold(fold(text)) == fold(text)


def test_exact_match():
    assert exact_match("Yes.", "yes")
    assert exact_match("12", "12%")
    assert not exact_match("2008", "2010")
    assert not exact_match("5", "-5")
    assert not exact_match("", "")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Yes.", "yes"),
        ("The color is RED!", "red"),
        ("red, red, red", "red"),
        ("red or blue", None),
        ("yes and no", None),
        ("nothing", None),  # "no" is not a word of it
        ("not at all", None),
        ("", None),
        ("grayish", None),
    ],
)
def test_match_closed(reply, answer):
    assert match_closed(reply, COLORS) == answer


def test_a_longer_answer_hides_the_shorter_one_inside():
    answers = ("circle", "Half-Circle")
    assert match_closed("it is a half circle", answers) == "Half-Circle"
    assert match_closed("it is a circle", answers) == "circle"
    assert match_closed("a half circle and a circle", answers) is None


def test_answers_that_fold_alike_are_refused():
    with pytest.raises(ValueError, match="told apart"):
        match_closed("x", ("2", "two"))


def test_wilson_known_values():
    # Newcombe 1998, table I (method 3).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(3, 2)


def test_wilson_is_where_the_score_test_turns():
    """The interval's ends are the p for which the observed share is 1.96 deviations away."""
    for n, k in ((20, 3), (200, 195), (50, 25)):
        for p in wilson(k, n):
            assert abs(k / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-5)


def test_wilson_covers_about_95_percent():
    n = 100
    for p in (0.5, 0.9, 0.97):
        chance = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        covered = sum(c for k, c in enumerate(chance) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
        assert 0.91 < covered < 0.985


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_three_right_answers_do_not_make_certainty(score):
    # Clopper and Pearson's exact bound of 3 of 3 is 0.29, Wilson's 0.44: both far from 1.
    low, high = mean_interval([score] * 6, [0, 0, 1, 1, 2, 2])
    assert (low, high) == wilson(3 * score, 3)
    assert high - low > 0.5
    assert mean_interval([0.0, 1.0, 1.0], [0, 1, 2]) == bootstrap_mean([0.0, 1.0, 1.0])


def test_bootstrap_mean():
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = bootstrap_mean(values, seed=5)
    assert (low, high) == bootstrap_mean(values, seed=5)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_mean([])


def test_bootstrap_by_group_is_wider_when_groups_stand_together():
    truth = np.random.default_rng(0).random(50) < 0.7
    values, groups = np.repeat(truth, 10).astype(float), np.repeat(np.arange(50), 10)
    alone, together = bootstrap_mean(values), bootstrap_mean(values, list(groups))
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])
    assert together == pytest.approx(bootstrap_mean(truth.astype(float)), abs=1e-9)


def test_psnr_is_its_formula():
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    b = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert psnr(a, b) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))
    scaled = (a / 127.5 - 1).astype(np.float32), (b / 127.5 - 1).astype(np.float32)
    assert psnr(*scaled) == pytest.approx(psnr(a, b), abs=1e-4)
    assert psnr(a, a) == math.inf
    with pytest.raises(ValueError, match="scales"):
        psnr(a, scaled[1])
    with pytest.raises(ValueError, match="shapes"):
        psnr(a, b[:4])


def test_distinct_counts_different_images():
    black, white = (PIL.Image.new("RGB", (4, 4), c) for c in ("black", "white"))
    assert distinct([black, white, black]) == (2, pytest.approx(2 / 3))
    assert distinct([black]) == (1, 0.0)
    assert distinct([np.asarray(black), np.asarray(white)]) == (2, 1.0)
    with pytest.raises(ValueError, match="sizes"):
        distinct([black, black.resize((5, 5))])
