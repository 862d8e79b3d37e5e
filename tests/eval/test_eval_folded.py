"""References are read as replies are, by every metric that compares."""

import json

import pytest

from chiasm.core.errors import DataError
from chiasm.core.sample import Sample, assistant, user
from chiasm.eval.runner import majority_baseline
from chiasm.eval.scoring import METRICS, find_metric
from chiasm.eval.task import MeasuredTask, QuestionTask
from chiasm.eval.tasks.table import read_table
from chiasm.recipes.eval_task import Asked

OPTIONS = {"A": "dog", "B": "cat"}


@pytest.mark.parametrize(
    ("metric", "meta", "reply"),
    [
        ("yes-no", {"reference": "Yes"}, "yes"),
        ("yes-no", {"reference": "NO."}, "No, there is none"),
        ("choice", {"reference": "(B)", "options": OPTIONS}, "B"),
        ("choice", {"reference": "b", "options": OPTIONS}, "The answer is B."),
        ("choice", {"reference": "Cat", "options": OPTIONS}, "B"),
        ("choice", {"reference": "The Cat"}, "it is a cat"),
        ("exact", {"reference": "The Dog."}, "dog"),
        ("vqa", {"reference": "Two", "answers": ["Two", "2."] * 5}, "two"),
        ("anls", {"reference": "A  DOG"}, "a dog"),
        ("relaxed", {"reference": "1,200 "}, "1200"),
        ("relaxed", {"reference": "Yes."}, "yes"),
        ("contains", {"reference": "STOP"}, "it says stop"),
        ("caption", {"reference": "A dog ."}, "a dog"),
    ],
)
@pytest.mark.parametrize("thought", ["", "<think>No. A. zebra 7</think>\n"])
def test_right_is_right_however_it_is_spelled(metric, meta, reply, thought):
    assert find_metric(metric).score(meta, thought + reply)["correct"] == pytest.approx(1)


@pytest.mark.parametrize("name", sorted({*METRICS} - {"click", "box"}))
def test_every_reference_is_right_as_a_reply(name):
    options = {"options": OPTIONS} if name == "choice" else {}
    for reference in ("Yes", "no.", " NO") if name == "yes-no" else ("(B)", "b.", "B", "cat"):
        meta = {"reference": reference, **options}
        assert find_metric(name).score(meta, reference)["correct"] == pytest.approx(1)


def test_pope_of_a_table_with_capitals(tmp_path):
    rows = [{"question": f"{i}?", "answer": a} for i, a in enumerate(["Yes", "No", "yes", "NO"])]
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    task = Asked(str(file), metric="yes-no").question_task()
    replies = [(sample, str(sample.meta["reference"]).lower()) for sample in task.samples()]
    assert [task.score(*pair)["correct"] for pair in replies] == [1, 1, 1, 1]
    assert isinstance(task, MeasuredTask)
    assert task.summary(replies) == {"precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5}


def test_an_answer_column_of_letters_in_brackets(tmp_path):
    rows = [{"question": "?", "A": "x", "B": "y", "answer": a} for a in ("(B)", "b", "y", "B.")]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [sample.turns[-1].text for sample in read_table(file)] == ["B"] * 4


def test_references_that_no_reply_can_match_are_refused_before_anything_is_asked():
    sample = Sample((user("?"), assistant("maybe")), "s")
    with pytest.raises(DataError, match="sample 's': the answer 'maybe' is neither yes nor no"):
        MeasuredTask("t", [sample], find_metric("yes-no"))
    with pytest.raises(DataError, match="'maybe' is not one of the options"):
        MeasuredTask("t", [sample.replace(meta={"options": OPTIONS})], find_metric("choice"))
    with pytest.raises(DataError, match="no 'box'"):
        MeasuredTask("t", [sample], find_metric("click"))


def test_closed_answers_and_several_references():
    sample = Sample(
        (user("?"), assistant("It is Red.")), "s", meta={"answers": ["It is Red.", "blue"]}
    )
    task = QuestionTask("t", [sample], ("red", "blue", "green"))
    (asked,) = task.samples()
    scores = [task.score(asked, reply)["correct"] for reply in ("red", "a blue one", "green", "?")]
    assert scores == [1, 1, 0, 0]
    free = QuestionTask("t", [sample])
    assert [free.score(asked, reply)["correct"] for reply in ("Blue!", "green")] == [1, 0]


def test_spellings_of_one_answer_are_counted_together():
    samples = [
        Sample((user(f"{i}?"), assistant(text)), f"{i}")
        for i, text in enumerate(["red", "Red.", "blue", "blue", "RED"])
    ]
    task = QuestionTask("t", samples)
    assert majority_baseline(task)["accuracy"] == pytest.approx(3 / 5)
    assert Asked("t").labels(task) == ["blue", "red"]
