"""Predictions on disk: what was answered once is never asked again, whatever ended the run."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import DataError
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.eval.ablation import SCALES, variants
from chiasm.eval.export import export, markdown
from chiasm.eval.metrics.refusal import is_refusal
from chiasm.eval.predictions import beside, key_of
from chiasm.eval.runner import evaluate, flip_rate
from chiasm.eval.task import QuestionTask

RUN = {"model": "m", "prompt_hash": "p"}

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_eval_resume import RUN, Counting, many
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.eval.runner import evaluate

respond = Counting(Path({log!r}), dies_after={dies})
evaluate(many(), respond, SamplingParams(), Path({out!r}), show=silent, chunk=8, run=RUN)
"""


def many(count: int = 50) -> QuestionTask:
    samples = [Sample((user(f"q{i}"), assistant("yes")), f"id{i}") for i in range(count)]
    return QuestionTask("many", samples)


class Counting:
    """Answers in pieces and writes down whom it answered; may kill its own process in between."""

    def __init__(self, log: Path, dies_after: int = -1, bad: str = ""):
        self.log, self.left, self.bad = log, dies_after, bad

    def __call__(self, samples, sampling):
        for i, sample in enumerate(samples):
            if sample.id == self.bad:
                raise DataError(f"{sample.id}: broken")
            if not self.left:
                import os

                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield i, StreamChunk("ye")
            yield i, StreamChunk("s", finish="length" if sample.id == "id3" else "stop")
            with self.log.open("a") as file:
                file.write(sample.id + "\n")


def test_a_killed_run_asks_only_what_it_had_not_written_down(tmp_path):
    out, log = tmp_path / "predictions.jsonl", tmp_path / "log"
    for dies in (13, 20):
        script = KILLED.format(
            here=str(Path(__file__).parent), log=str(log), out=str(out), dies=dies
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(out.read_text().splitlines()) == 33
    assert json.loads(beside(out).read_text()) == {"complete": False, "run": RUN}
    result = evaluate(many(), Counting(log), SamplingParams(), out, silent, 8, RUN)
    assert sorted(log.read_text().split()) == sorted(f"id{i}" for i in range(50))
    assert (result.n, result.accuracy, result.resumed) == (50, 1.0, 33)
    again = evaluate(many(), Counting(log, dies_after=0), SamplingParams(), out, silent, 8, RUN)
    assert (again.n, again.resumed, again.truncations) == (50, 50, result.truncations)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"id{i}" for i in range(50)]
    record = json.loads(beside(out).read_text())
    assert (record["complete"], record["run"], record["n"]) == (True, RUN, 50)


def test_resuming_equals_one_go(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    once = evaluate(many(), Counting(tmp_path / "l"), SamplingParams(), whole, silent, 8, RUN)
    evaluate(many(20), Counting(tmp_path / "l"), SamplingParams(), parts, silent, 8, RUN)
    lines = parts.read_text().splitlines()
    parts.write_text("\n".join(lines[:11]) + '\n{"id": "cut sho')
    twice = evaluate(many(), Counting(tmp_path / "l"), SamplingParams(), parts, silent, 3, RUN)
    assert whole.read_text() == parts.read_text()
    assert once.truncations == twice.truncations == 1
    assert once.accuracy_interval == twice.accuracy_interval


@pytest.mark.parametrize("run", [{"model": "other"}, None])
def test_replies_of_another_run_are_not_taken_up(tmp_path, run):
    out, log = tmp_path / "p.jsonl", tmp_path / "log"
    evaluate(many(4), Counting(log), SamplingParams(), out, silent, 8, RUN)
    result = evaluate(many(4), Counting(log), SamplingParams(), out, silent, 8, run)
    assert result.resumed == 0
    assert len(log.read_text().split()) == 8


def test_what_failed_is_asked_again(tmp_path):
    out, log = tmp_path / "p.jsonl", tmp_path / "log"
    first = evaluate(many(5), Counting(log, bad="id2"), SamplingParams(), out, silent, 8, RUN)
    assert set(first.errors) == {"id2"}
    log.unlink()
    second = evaluate(many(5), Counting(log), SamplingParams(), out, silent, 8, RUN)
    assert log.read_text().split() == ["id2"]
    assert (second.errors, second.n) == ({}, 5)


def test_the_key_follows_the_question_its_images_and_the_files_state(tmp_path):
    file = tmp_path / "a.png"
    PIL.Image.new("RGB", (4, 4)).save(file)

    def asked(text="q", source=file):
        return Sample((user(Image(source), text),), "x", meta={"reference": "r"})

    base = key_of(asked())
    assert base == key_of(asked().replace(meta={}))
    assert key_of(asked("other")) != base
    assert key_of(asked(source=tmp_path / "gone.png")) != base
    PIL.Image.new("RGB", (9, 4)).save(file)
    assert key_of(asked()) != base
    red = PIL.Image.new("RGB", (4, 4), "red")
    assert key_of(asked(source=red)) == key_of(asked(source=red.copy())) != base


def test_refusals_and_truncations_are_counted_and_still_scored():
    said = ["I'm sorry, I cannot see it", "yes", "As an AI I do not know", "yes, sorry"]

    def respond(samples, sampling):
        for i, text in enumerate(said):
            yield i, StreamChunk(text, finish="length" if i == 1 else "stop")

    result = evaluate(many(4), respond, SamplingParams(), show=silent)
    assert (result.n, result.refusals, result.truncations, result.accuracy) == (4, 2, 1, 0.25)


@pytest.mark.parametrize(
    ("reply", "refuses"),
    [
        ("I'm sorry, but I can\u2019t help", True),
        ("I am unable to tell", True),
        ("Unfortunately, I cannot see", True),
        ("sorry, no", True),
        ("I cannot determine it.", True),
        ("I see a cat", False),
        ("It is red. I cannot say more", False),
        ("I", False),
        ("", False),
        ("sorrel", False),
    ],
)
def test_refusals(reply, refuses):
    assert is_refusal(reply) is refuses


def test_flip_rate_counts_replies_that_depend_on_company():
    samples = [Sample((user(f"q{i}"),), f"id{i}") for i in range(10)]

    def respond(asked, sampling):
        for i, sample in enumerate(asked):
            shaken = len(asked) > 1 and sample.id in ("id2", "id5", "id7")
            yield i, StreamChunk("other" if shaken else "same", finish="stop")

    assert flip_rate(samples, respond, SamplingParams()) == pytest.approx(0.3)
    assert flip_rate([], respond, SamplingParams()) == 0


def image_task(count=6):
    random = np.random.default_rng(0)
    images = [
        Image(PIL.Image.fromarray(random.integers(0, 255, (8, 40, 3), np.uint8))) for _ in range(3)
    ]
    samples = [
        Sample((user(images[i % 3], f"q{i}"), assistant("yes")), f"id{i}") for i in range(count)
    ]
    return QuestionTask("toy", samples)


def test_ablations_change_the_images_and_nothing_else():
    task = image_task()
    found = {v.name: v.task for v in variants(task, ("blind", "shuffled", "resolution"), 0)}
    assert list(found) == ["", "blind", "shuffled", *SCALES]
    for changed in found.values():
        assert [s.turns[-1].text for s in changed.samples()] == [
            s.turns[-1].text for s in task.samples()
        ]
        assert [s.meta for s in changed.samples()] == [s.meta for s in task.samples()]
    assert not any(s.images for s in found["blind"].samples())
    pairs = list(zip(task.samples(), found["shuffled"].samples(), strict=True))
    assert all(a.images[0].digest() != b.images[0].digest() for a, b in pairs)
    for name, size in (("half", (20, 4)), ("quarter", (10, 2)), ("eighth", (5, 1))):
        small = found[name].samples()[0].images[0]
        assert small.load().size == size
        assert small.digest() != task.samples()[0].images[0].digest()
    assert len({key_of(v.samples()[0]) for v in found.values()}) == len(found)


def test_ablations_need_images():
    with pytest.raises(DataError, match="no images"):
        variants(many(), ("blind",), 0)


def test_export_in_both_forms(tmp_path):
    rows = [{"task": "a|b", "n": 3, "score": 0.123456}, {"task": "c", "n": 10, "note": "x"}]
    assert markdown(rows).splitlines() == [
        "| task | n | score | note |",
        "| --- | --: | --: | --- |",
        "| a\\|b | 3 | 0.1235 |  |",
        "| c | 10 |  | x |",
    ]
    export(tmp_path / "o" / "r.json", rows, {"all": rows})
    assert json.loads((tmp_path / "o" / "r.json").read_text()) == {"all": rows}
    export(tmp_path / "r.md", rows, {})
    assert (tmp_path / "r.md").read_text() == markdown(rows) + "\n"
