import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from chiasm.core.errors import DataError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.eval.metrics.interval import wilson
from chiasm.eval.runner import evaluate
from chiasm.eval.task import QuestionTask

ANSWERS = ("yes", "no", "red", "blue")


def task_of(references: Sequence[str]) -> QuestionTask:
    return QuestionTask(
        "toy",
        [
            Sample(
                (user(Image(Path(f"/nowhere/{i}.png")), f"q{i}"), assistant(reference)), f"id{i}"
            )
            for i, reference in enumerate(references)
        ],
        ANSWERS,
    )


class Fake:
    """Says what the table says, in pieces and out of order; raises for the bad ones."""

    def __init__(self, replies: dict[str, str], bad: Sequence[str] = ()):
        self.replies, self.bad, self.calls = replies, set(bad), 0

    def __call__(
        self, samples: Sequence[Sample], sampling: SamplingParams
    ) -> Iterator[tuple[int, StreamChunk]]:
        self.calls += 1
        assert all(s.turns[-1].role == "user" for s in samples)
        for i in reversed(range(len(samples))):
            name = samples[i].id
            if name in self.bad:
                raise DataError(f"{name}.png: no such image; remove the sample")
            text = self.replies[name]
            yield i, StreamChunk(text[:2])
            yield i, StreamChunk(text[2:], finish="stop")


def test_numbers_add_up(tmp_path):
    task = task_of(["yes", "no", "red", "blue", "red"])
    said = {"id0": "Yes.", "id1": "yes", "id2": "red", "id3": "red or blue", "id4": "the red one"}
    result = evaluate(
        task,
        Fake(said),
        SamplingParams(),
        tmp_path / "x" / "predictions.jsonl",
        show=silent,
        chunk=2,
    )
    assert (result.n, result.accuracy) == (5, pytest.approx(0.6))
    assert result.accuracy_interval == wilson(3, 5)
    assert (result.open_accuracy, result.yes_no_accuracy) == (pytest.approx(2 / 3), 0.5)
    assert (result.parse_failures, result.errors) == (1, {})
    assert result.categories["red"] == {"n": 2, "accuracy": 1.0}
    assert result.interval_by_image[0] <= 0.6 <= result.interval_by_image[1]
    json.dumps(result.to_dict())
    lines = [json.loads(x) for x in (tmp_path / "x/predictions.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "id": "id0",
        "image": "/nowhere/0.png",
        "question": "q0",
        "reference": "yes",
        "category": "yes",
        "reply": "Yes.",
        "finish": "stop",
        "parsed": 1,
        "correct": 1,
        "key": lines[0]["key"],
    }
    assert [line["correct"] for line in lines] == [1, 0, 1, 0, 1]
    assert [line["parsed"] for line in lines] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_a_failing_sample_is_an_error_and_not_a_wrong_answer(tmp_path, chunk):
    references = ["yes"] * 20
    task = task_of(references)
    fake = Fake({f"id{i}": "yes" for i in range(20)}, bad=["id3", "id11"])
    out = tmp_path / "predictions.jsonl"
    result = evaluate(task, fake, SamplingParams(), out, show=silent, chunk=chunk)
    assert (result.n, result.accuracy, result.parse_failures) == (18, 1.0, 0)
    assert set(result.errors) == {"id3", "id11"}
    assert "id3.png: no such image" in result.errors["id3"]
    assert fake.calls < 20 + 3
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [x["id"] for x in lines] == [f"id{i}" for i in range(20)]
    assert lines[3]["correct"] is None
    assert "no such image" in lines[3]["error"]


def test_a_reply_that_never_ends_is_an_error():
    def respond(samples, sampling):
        yield 0, StreamChunk("yes", finish="stop")
        yield 1, StreamChunk("yes")

    result = evaluate(task_of(["yes", "yes"]), respond, SamplingParams(), show=silent)
    assert (result.n, result.accuracy) == (1, 1.0)
    assert "never ended" in result.errors["id1"]


def test_nothing_answered_is_an_error():
    with pytest.raises(DataError, match="none of 2 samples could be asked; id"):
        evaluate(task_of(["yes", "yes"]), Fake({}, ["id0", "id1"]), SamplingParams(), show=silent)


def test_other_errors_are_not_swallowed():
    with pytest.raises(KeyError):
        evaluate(task_of(["yes"]), Fake({}), SamplingParams(), show=silent)


def test_progress_is_shown(capsys):
    evaluate(task_of(["yes", "no"]), Fake({"id0": "yes", "id1": "yes"}), SamplingParams())
    shown = capsys.readouterr().out
    assert "toy" in shown
    assert "2/2" in shown
