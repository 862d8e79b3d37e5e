"""The same rows by default, by likelihood and as lmms-eval scores them: asked alike, scored alike;
and the names that docs and help tell are those there are."""

import json
import re
from pathlib import Path

import pytest
from test_eval_batches import llama

from chiasm.cli import eval as cli_eval
from chiasm.cli import options
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.eval.harness import USUAL
from chiasm.eval.runner import evaluate
from chiasm.eval.scoring import METRICS
from chiasm.eval.tasks.registry import NAMES
from chiasm.generation.generator import Generator
from chiasm.generation.likelihood import LabelResponder
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.evaluate import How, _labels

ANSWERS = {
    "choice": ["A", "(b)", "c", "blue", "a dog", "D."],
    "yes-no": ["Yes", "no", "NO.", "yes"],
    "exact": ["red", "blue", "red", "Red"],
    "relaxed": ["12", "3.5", "red", "0"],
    "contains": ["stop", "go left"],
    "anls": ["stop", "go left"],
    "vqa": [["stop"] * 10, ["dog"] * 10],
}
OPTIONS = {"choice": {"choices": ["red", "a dog", "12 %", "blue"]}}
ROWS = {
    metric: [
        {"question": f"{i}?", "answer": right, **OPTIONS.get(metric, {})}
        for i, right in enumerate(answers)
    ]
    for metric, answers in ANSWERS.items()
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return Generator(*llama(tmp_path_factory.mktemp("model") / "llama"))


@pytest.mark.parametrize("metric", sorted(ROWS))
def test_default_likelihood_and_compat_agree(tmp_path, generator, metric):
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS[metric])))
    plain = Asked(str(file), metric=metric)
    theirs = Asked(str(file), metric=metric, match_harness="lmms-eval")
    task, other = plain.question_task(), theirs.question_task()
    assert [s.turns for s in task.samples()] == [s.turns for s in other.samples()]
    labels = _labels(plain, task, How().labels)
    said = {}

    def likeliest(samples, sampling):
        for i, piece in LabelResponder(generator, labels)(samples, sampling):
            said[samples[i].id] = piece.text
            yield i, piece

    def generated(samples, sampling):  # a model that says what is likeliest
        for i, sample in enumerate(samples):
            yield i, StreamChunk(said[sample.id], finish="stop")

    by_likelihood = evaluate(task, likeliest, SamplingParams(), show=silent)
    results = [
        by_likelihood,
        *(evaluate(t, generated, SamplingParams(), show=silent) for t in (task, other)),
    ]
    assert len({result.accuracy for result in results}) == 1
    assert all(result.parse_failures == 0 for result in results)
    for sample in task.samples():
        for label in labels(sample):
            right = [one.score(sample, label)["correct"] for one in (task, other)]
            assert right[0] == right[1], (sample.meta, label)


def test_open_questions_do_not_choose_letters_of_others(tmp_path):
    rows = [*ROWS["choice"][:2], {"question": "how many?", "answer": "7"}]
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = Asked(str(file), metric="choice")
    task = asked.question_task()
    labels = _labels(asked, task, None)
    assert [labels(s) for s in task.samples()] == [list("ABCD"), list("ABCD"), ["7"]]


def test_names_in_docs_and_help_are_those_there_are():
    docs = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    listed = re.search(r"^Benchmarks: (.*?)\.", docs, re.M | re.S)
    assert listed
    assert set(re.split(r",\s+", listed[1])) == set(NAMES)
    metrics = docs[docs.index("## Metrics") : docs.index("## Encoders")]
    assert {*METRICS} <= set(re.findall(r"`([a-z-]+)`", metrics))
    assert {*USUAL} - {"caption"} <= set(re.findall(r"`([a-z-]+)` [A-Z]", metrics))
    files = [Path(str(module.__file__)) for module in (cli_eval, options)]
    help_text = " ".join(" ".join(file.read_text() for file in files).split())
    assert all(name in help_text for name in (*NAMES, *METRICS, "lmms-eval 0.7.3"))
