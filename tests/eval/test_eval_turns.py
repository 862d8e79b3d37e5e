"""Every assistant turn of a conversation is a question: which are asked, after what, and how they
are scored."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from test_eval_batches import llama

from chiasm.core.errors import DataError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Image, Message, Sample, assistant, user
from chiasm.eval.compare import ModelResult, compare
from chiasm.eval.conversation import group_key, questions_of, with_replies
from chiasm.eval.predictions import read_predictions
from chiasm.eval.report.compared import render_comparison
from chiasm.eval.runner import evaluate
from chiasm.eval.scoring import find_metric
from chiasm.eval.task import MeasuredTask, QuestionTask
from chiasm.generation.generator import Generator

FIELDS = ("company", "date", "address", "total")


def image(n: int) -> Image:
    pixels = np.random.default_rng(n).integers(0, 256, (8 + n % 5, 9, 3), np.uint8)
    return Image(PIL.Image.fromarray(pixels))


def receipt(n: int, shown: bool = True, **meta) -> Sample:
    """One scan, four questions, as the receipts sets have them."""
    turns = []
    for field in FIELDS:
        first = (image(n),) if shown and not turns else ()
        turns += [user(*first, f"{field}?"), assistant(f"{field} {n}")]
    return Sample(tuple(turns), f"r{n}", meta=meta)


def words(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def test_every_assistant_turn_is_a_question_after_the_gold_history():
    asked = QuestionTask("receipts", [receipt(0), receipt(1)]).samples()
    assert len(asked) == 8
    assert [s.meta["reference"] for s in asked[:4]] == [f"{field} 0" for field in FIELDS]
    assert words(asked[2]) == ["company?", "company 0", "date?", "date 0", "address?"]
    assert len({s.id for s in asked}) == 8
    assert len({group_key(s) for s in asked}) == 2
    last = QuestionTask("receipts", [receipt(0), receipt(1)], turns="last").samples()
    assert [(s.id, s.meta["reference"]) for s in last] == [("r0", "total 0"), ("r1", "total 1")]
    assert words(last[0]) == words(asked[3])


def test_questions_about_no_image_stand_together_too():
    asked = QuestionTask("t", [receipt(0, False), receipt(1, False)]).samples()
    assert len({group_key(s) for s in asked}) == 2


def test_which_turns_are_questions():
    hello, look = assistant("Hello!"), Message("assistant", (image(0),))
    turns = (hello, user("a?"), assistant("x"), assistant("y"), user("b?"), look, user("c?"))
    first, second = questions_of(Sample((*turns, assistant("z")), "s"), 0)
    assert (words(first), first.meta["reference"]) == (["Hello!", "a?"], "x\ny")
    assert (words(second)[-1], second.meta["reference"]) == ("c?", "z")
    again = with_replies(second, ["<think>hm</think>mine"])
    assert words(again) == ["Hello!", "a?", "mine", "b?", "", "c?"]
    with pytest.raises(DataError, match="no assistant turn with words"):
        questions_of(Sample((user("draw"), look), "s"), 0)


def test_meta_of_one_question():
    per_turn = {
        "answers": [["company 0", "the company"], None, None, ["total 0", "7"]],
        "category": ["name", "date", "place", "number"],
    }
    asked = MeasuredTask("t", [receipt(0, **per_turn, width=9)], find_metric("exact")).samples()
    assert [s.meta["category"] for s in asked] == ["name", "date", "place", "number"]
    assert [s.meta.get("answers", [])[1:] for s in asked] == [["the company"], [], [], ["7"]]
    assert all(s.meta["width"] == 9 for s in asked)
    flat = MeasuredTask("t", [receipt(0, answers=["total 0", "7"])], find_metric("exact")).samples()
    assert ["answers" in s.meta for s in flat] == [False, False, False, True]
    whole = {"answers": ["a", "b", "c", "d"]}  # of the last, although there are four questions
    assert "answers" not in questions_of(receipt(0, **whole), 0)[0].meta


def saying(reply):
    """A responder, and the prompts it was given in order."""
    prompts = []

    def respond(samples, sampling):
        for i, sample in enumerate(samples):
            prompts.append(words(sample))
            yield i, StreamChunk(reply(sample), finish="stop")

    return respond, prompts


def test_own_history_goes_on_from_the_replies_round_by_round(tmp_path):
    task = QuestionTask("receipts", [receipt(n) for n in range(3)])
    respond, prompts = saying(lambda s: f"<think>hm</think>my {s.turns[-1].text}")
    result = evaluate(task, respond, SamplingParams(), show=silent, history="own")
    assert (result.n, result.history) == (12, "own")
    assert [len(prompt) for prompt in prompts] == [1] * 3 + [3] * 3 + [5] * 3 + [7] * 3
    assert prompts[-1] == ["company?", "my company?", "date?", "my date?", "address?",
                           "my address?", "total?"]  # fmt: skip


@pytest.mark.parametrize("history", ["gold", "own"])
def test_scores_by_turn_in_result_and_records(tmp_path, history):
    task = QuestionTask("receipts", [receipt(n) for n in range(4)])
    out = tmp_path / "predictions.jsonl"

    def reply(sample):  # dates are right, the total where the scan's number is even
        n, field = sample.meta["reference"].split()[1], sample.turns[-1].text[:-1]
        return f"{field} {n}" if field == "date" or (field == "total" and n in "02") else "?"

    respond, prompts = saying(reply)
    run = {"model": "m"}
    result = evaluate(task, respond, SamplingParams(), out, silent, 3, run, history=history)
    shares = [result.turns[str(turn)]["accuracy"] for turn in range(1, 5)]
    assert shares == [0, 1, 0, 0.5]
    assert all(one["n"] == 4 for one in result.turns.values())
    low, high = result.interval_by_image
    assert low < result.accuracy == 6 / 16 < high
    records = read_predictions(out)
    assert [(r["conversation"], r["turn"]) for r in records[:5]] == [
        ("r0", 1), ("r0", 2), ("r0", 3), ("r0", 4), ("r1", 1)]  # fmt: skip
    asked = len(prompts)
    again = evaluate(task, respond, SamplingParams(), out, silent, 3, run, history=history)
    assert (again.resumed, len(prompts), again.turns) == (16, asked, result.turns)


def test_what_follows_a_failed_reply_is_an_error_with_own_history_only():
    def respond(samples, sampling):
        for i, sample in enumerate(samples):
            if sample.turns[-1].text == "date?" and "company 1" in str(sample.meta["question_of"]):
                raise DataError("broken")
            if sample.meta["reference"] == "date 1":
                raise DataError("broken")
            yield i, StreamChunk("?", finish="stop")

    task = QuestionTask("receipts", [receipt(n) for n in range(2)])
    gold = evaluate(task, respond, SamplingParams(), show=silent)
    assert (gold.n, gold.errors) == (7, {"r1/1": "broken"})
    own = evaluate(task, respond, SamplingParams(), show=silent, history="own")
    assert own.n == 5
    assert own.errors["r1/2"] == own.errors["r1/3"] == "r1/1 has no reply to go on from"


def test_models_are_compared_turn_by_turn(tmp_path):
    def records(right):
        return {
            f"r{n}/{turn}": {"turn": turn + 1, "conversation": f"r{n}", "category": "open",
                             "correct": float(turn in right), "reply": "x", "question": "q"}
            for n in range(8) for turn in range(4)
        }  # fmt: skip

    found = compare([ModelResult("a", records({0, 1})), ModelResult("b", records({0, 3}))])
    assert [part.name for part in found.turns] == ["turn 1", "turn 2", "turn 3", "turn 4"]
    differences = [part.pairs[0].difference for part in found.turns]
    assert differences == [0, -1, 0, 1]
    assert found.turns[3].pairs[0].winner == "b"
    page = render_comparison(found, "receipts", "accuracy", tmp_path / "page.html").read_text()
    assert "Turn by turn" in page
    assert "turn 4 (n 8)" in page


def test_turns_share_the_image_and_reply_as_if_asked_alone(tmp_path):
    model, processor = llama(tmp_path / "llama")
    torch.manual_seed(0)
    task = QuestionTask("receipts", [receipt(n) for n in range(6)])
    samples = list(task.samples())
    shared = [members for _, members in processor.prompts(samples)]
    assert [len(members) for members in shared] == [4] * 6
    respond = Generator(model, processor)

    def said(part):
        texts = [""] * len(part)
        for index, piece in respond(part, SamplingParams(max_tokens=12)):
            texts[index] += piece.text
        return texts

    together = said(samples)
    assert together == [said([sample])[0] for sample in samples]
    assert len(set(together)) > 6


def test_the_command_reports_turns_and_refuses_what_cannot_be(tmp_path, capsys):
    from chiasm.core.errors import ConfigError
    from chiasm.recipes.eval_task import Asked
    from chiasm.recipes.evaluate import How, _print, ask_model

    lines = []
    for n in range(3):
        messages = [{"role": t.role, "content": t.text} for t in receipt(n, False).turns]
        lines.append(json.dumps({"id": f"r{n}", "messages": messages}))
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(lines))
    task = Asked(str(file)).question_task()
    assert len(task.samples()) == 12
    assert len(Asked(str(file), turns="last").question_task().samples()) == 3
    respond, _ = saying(lambda s: s.meta["reference"])
    _print({"": evaluate(task, respond, SamplingParams(), show=silent)}, {"accuracy": 0.5,
           "open_accuracy": 0.5, "yes_no_accuracy": None}, 0.25)  # fmt: skip
    assert "turn 4 (n 3)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="leave out --turns last"):
        ask_model(tmp_path, Asked(str(file), turns="last"), task, How(history="own"), file)
