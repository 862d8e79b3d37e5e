"""Every metric against scores worked out by hand: golden/*.json hold a call and cases of (reply,
what is wanted, score, why). The defects of known harnesses (FACTS, section 4) stand among them."""

import json
import random
from pathlib import Path

import pytest

from chiasm.eval.harness import harness_metric
from chiasm.eval.metrics import lmms_eval
from chiasm.eval.metrics.bleu import bleu
from chiasm.eval.metrics.boxes import Box, inside, iou, parse_point
from chiasm.eval.metrics.choice import parse_choice
from chiasm.eval.metrics.containment import contains, contains_words
from chiasm.eval.metrics.edit import anls, character_error_rate, word_error_rate
from chiasm.eval.metrics.perplexity import perplexity
from chiasm.eval.metrics.relaxed import relaxed_match
from chiasm.eval.metrics.rouge import rouge_l
from chiasm.eval.metrics.vqa import exact_match
from chiasm.eval.metrics.vqa_accuracy import vqa_accuracy
from chiasm.eval.metrics.words import caption_tokens
from chiasm.eval.metrics.yes_no import parse_yes_no, pope
from chiasm.eval.scoring import find_metric

CALLABLE = {
    f.__name__: f
    for f in (anls, bleu, caption_tokens, character_error_rate, contains, contains_words)
} | {
    f.__name__: f
    for f in (exact_match, inside, iou, parse_choice, parse_point, parse_yes_no, perplexity)
}
CALLABLE |= {f.__name__: f for f in (Box, relaxed_match, rouge_l, vqa_accuracy, word_error_rate)}
CASES = [
    pytest.param(suite["call"], *case, id=f"{file.stem}-{i}: {case[3]}")
    for file in sorted((Path(__file__).parent / "golden").glob("*.json"))
    for suite in [json.loads(file.read_text())]
    for i, case in enumerate(suite["cases"])
]


def test_the_suite_is_as_large_as_it_claims():
    assert len(CASES) >= 150


@pytest.mark.parametrize(("call", "reply", "wanted", "score", "why"), CASES)
def test_golden(call, reply, wanted, score, why):
    # The calls are this repository's own: eval spells them next to their cases.
    found = eval(call, {**CALLABLE, "reply": reply, "wanted": wanted, "tuple": tuple})
    if isinstance(score, (int, float)):
        found = float(found)
    elif isinstance(score, list):
        found = list(found)
    assert found == (
        pytest.approx(score) if score and not isinstance(score, (str, list)) else score
    )


def test_pope_ratio_is_that_of_the_predictions():
    replies, answers = ["Yes.", "yes", "yes", "no"], ["yes", "no", "no", "no"]
    ours = pope(replies, answers)
    assert ours == (0.5, pytest.approx(1 / 3), 1.0, 0.5, 0.75, 0)
    theirs = lmms_eval.pope(replies, answers)
    assert theirs.yes_ratio == 0.25  # of the gold answers: it cannot change with the model
    assert theirs.accuracy == 0.25  # "Yes." is not "yes"
    assert (theirs.precision, theirs.recall, theirs.f1) == (0, 0, 0)


def test_pope_counts_unreadable_replies_as_misses():
    ours = pope(["yes", "I see a dog", "no"], ["yes", "yes", "no"])
    assert ours == (pytest.approx(2 / 3), 1.0, 0.5, pytest.approx(2 / 3), pytest.approx(1 / 3), 1)
    assert lmms_eval.pope(["yes", "I see a dog", "no"], ["yes", "yes", "no"]).recall == 1.0


def test_nothing_accumulates_from_one_evaluation_to_the_next():
    once = pope(["yes", "no"], ["yes", "yes"])
    assert pope(["yes", "no"], ["yes", "yes"]) == once
    first = vqa_accuracy("none", ["none"] * 5 + ["unseen word"] * 5)
    assert vqa_accuracy("none", ["none"] * 5 + ["unseen word"] * 5) == first == 1.0
    meta = {"reference": "stop", "category": "scene text"}
    results = [_evaluate_once(meta) for _ in range(2)]
    assert results[0] == results[1] == {"correct": 1.0, "parsed": 1.0}


def _evaluate_once(meta):
    return find_metric("contains").score(meta, "a STOP sign")


def test_a_guess_is_drawn_only_where_their_habit_is_asked_for():
    options = {"A": "dog", "B": "cat", "C": "cow"}
    assert {parse_choice("unclear", options) for _ in range(20)} == {None}
    guess = random.Random(0)
    drawn = [lmms_eval.mmmu_choice("unclear", options, guess) for _ in range(300)]
    assert all(60 < drawn.count(letter) < 140 for letter in options)
    assert lmms_eval.mmmu_choice("(B)", options, guess) == "B"


def test_their_guesses_score_by_chance_and_ours_never():
    metas = [
        {"reference": "A", "options": dict.fromkeys("ABCD", "x"), "where": i} for i in range(400)
    ]
    ours, theirs = find_metric("choice"), harness_metric("choice")
    assert sum(ours.score(meta, "unclear")["correct"] for meta in metas) == 0
    guessed = [theirs.score(meta, "unclear") for meta in metas]
    assert 70 < sum(score["correct"] for score in guessed) < 130
    assert sum(score["parsed"] for score in guessed) == 0
    assert guessed == [theirs.score(meta, "unclear") for meta in metas]
