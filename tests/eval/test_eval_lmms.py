"""--match-harness lmms-eval against lmms-eval 0.7.3: thousands of drawn pairs a benchmark, whose
scores were recorded with the package (lmms_pairs.py)."""

import json
from collections import Counter
from pathlib import Path

import pytest
from lmms_pairs import BENCHMARKS, COUNT, VERSION, draw

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Sample, assistant, user
from chiasm.eval.harness import harness_metric
from chiasm.eval.metrics import lmms_eval
from chiasm.eval.scoring import METRICS
from chiasm.eval.task import MeasuredTask
from chiasm.eval.tasks.registry import NAMES, find_benchmark
from chiasm.recipes.eval_task import Asked

RECORDED = json.loads((Path(__file__).parent / "lmms_eval_0_7_3.json").read_text())


def outcome(benchmark: str, pair: dict) -> float:
    """As lmms_pairs.record says it, by our metric."""
    name = benchmark.removesuffix("-open")
    metric = harness_metric(find_benchmark(name).metric, name)
    if "options" not in pair:
        reference = pair.get("answer") or pair["answers"][0]
        return metric.score({"reference": reference, **pair}, pair["reply"])["correct"]
    metas = [{"reference": letter, **pair} for letter in pair["options"]]
    scores = [metric.score(meta, pair["reply"]) for meta in metas]
    if benchmark == "mmmu" and not scores[0]["parsed"]:
        return -2
    right = [score["correct"] for score in scores]
    return right.index(1) if 1 in right else -1


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_drawn_pair_scores_as_in_the_package(benchmark):
    assert RECORDED["version"] == VERSION == lmms_eval.VERSION
    pairs, theirs = draw(benchmark), RECORDED[benchmark]
    assert len(pairs) == len(theirs) == COUNT
    assert min(Counter(theirs).most_common(2)[1][1], COUNT) > COUNT / 20  # not all the same
    different = [
        (pair, score, ours)
        for pair, score in zip(pairs, theirs, strict=True)
        if (ours := outcome(benchmark, pair)) != pytest.approx(score, abs=1e-5)
    ]
    assert not different, f"{len(different)} of {COUNT}, the first: {different[:3]}"


@pytest.mark.parametrize(
    ("benchmark", "meta", "reply", "correct"),
    [
        ("vqav2", {"answers": ["two"] * 10}, "two", 1),
        ("vqav2", {"answers": ["1,200"] * 10}, "1200", 1),
        ("textvqa", {"answers": ["no."] * 10}, "no", 1),
        ("ai2d", {"reference": "B", "options": dict.fromkeys("ABCD", "x")}, "The answer is B", 0),
        ("ai2d", {"reference": "B", "options": dict.fromkeys("ABCD", "x")}, "B. x", 1),
        ("mmstar", {"reference": "B", "options": dict.fromkeys("ABCD", "x")}, "B, dog", 1),
        ("mmstar", {"reference": "B", "options": dict.fromkeys("ABCD", "x")}, "**B**", 1),
        ("mmmu", {"answers": ["3.14"]}, "The answer is 3.140", 1),
        ("chartqa", {"reference": "2010"}, "2008", 1),
    ],
)
def test_what_the_issue_named(benchmark, meta, reply, correct):
    metric = harness_metric(find_benchmark(benchmark).metric, benchmark)
    meta = {"reference": (meta.get("answers") or [""])[0], **meta}
    assert metric.score(meta, reply)["correct"] == correct


def test_pope_by_their_counts():
    metric = harness_metric("yes-no", "pope")
    metas = [{"reference": r} for r in ("Yes", "yes", "no", "No")]
    found = metric.summary(metas, ["yes", "I see a dog", "<think>no</think> Yes", "Yes."])
    assert found == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "yes_ratio": 0.5}


def test_the_version_is_told_and_what_it_has_not_is_refused():
    for name, metric in METRICS.items():
        if name in ("click", "box", "transcript"):
            with pytest.raises(ConfigError, match=r"lmms-eval 0\.7\.3 has no scoring"):
                harness_metric(name)
        elif name != "caption":
            assert harness_metric(name).measure == f"{metric.measure} (lmms-eval 0.7.3)"
    for name in NAMES:
        if name in ("imagenet", "screenspot", "geneval"):
            with pytest.raises(ConfigError, match=f"no scoring of {name}"):
                harness_metric(find_benchmark(name).metric, name)
    sample = Sample((user("?"), assistant("two")), "s")
    with pytest.raises(DataError, match="one answer, where lmms-eval"):
        MeasuredTask("t", [sample], harness_metric("vqa"))


def test_compat_is_never_ignored(tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A dog."}]}
    ]
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    task = Asked(str(file), match_harness="lmms-eval").question_task()
    assert isinstance(task, MeasuredTask)
    assert task.measure == "accuracy (lmms-eval 0.7.3)"
    assert task.score(task.samples()[0], "dog")["correct"] == 0  # articles count there
    assert Asked(str(file)).question_task().score(task.samples()[0], "dog")["correct"] == 1
