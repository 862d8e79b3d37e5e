"""The script for a machine with a GPU: what it makes of findings, of time and of failures, and that
it runs to its end without a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_what_a_part_said_is_kept_when_its_time_is_over():
    from benchmarks.gpu import SAYS, watched

    script = f'import time; print({SAYS!r} + \'{{"kind": "row"}}\', flush=True); time.sleep(60)'
    began = time.monotonic()
    found = watched("part", [sys.executable, "-c", script], 5)
    assert time.monotonic() - began < 30
    assert [f["kind"] for f in found] == ["row", "missing"]
    assert "5 s were over" in found[1]["why"]


def test_a_part_that_fails_is_told_with_its_last_words():
    from benchmarks.gpu import watched

    found = watched("part", [sys.executable, "-c", "raise SystemExit('no such kernel')"], 60)
    assert found == [
        {"kind": "missing", "what": "part: the rest", "why": "ended with code 1: no such kernel"}
    ]


def test_what_goes_wrong_in_one_measurement_does_not_end_the_part():
    import torch
    from benchmarks.gpu import Job

    found = []
    job = Job(torch.device("cpu"), True, 0.0, found.append)
    with job.attempt("the first"):
        raise RuntimeError("out of\n memory")
    with job.attempt("the second"):
        job.row("table", what="it", measured=2.0, unknown=float("nan"))
    assert found == [
        {"kind": "missing", "what": "the first", "why": "RuntimeError: out of memory"},
        {
            "kind": "row",
            "table": "table",
            "cells": {"what": "it", "measured": 2.0, "unknown": None},
        },
    ]


def test_overlapping_kernels_count_once():
    from benchmarks.gpu import covered

    assert covered([(5, 6), (0, 2), (1, 3), (2, 2.5)]) == 4
    assert covered([]) == 0


def test_tokens_after_the_first_difference_do_not_count_as_equal():
    from benchmarks.gpu import apart

    assert apart([["1", "2", "3", "4"], ["1"]], [["1", "2", "9", "4"], ["1"]]) == pytest.approx(0.4)
    assert apart([[]], [["1", "2"]]) == 1
    assert apart([["1"]], [["1"]]) == 0


def test_findings_become_the_json_line_and_tables():
    from benchmarks.gpu import summary

    part = {"ours": 3000.0, "peer": 1000.0, "ratio": 3.0, "unit": "tokens/s", "spread": 0.01}
    findings = [
        {"kind": "rate", "name": "a step", **part},
        {"kind": "rate", "name": "decode", **part, "ratio": 0.5},
        {
            "kind": "row",
            "table": "equal",
            "cells": {"what": "x", "distance": None, "within": False},
        },
        {"kind": "missing", "what": "y", "why": "no time was left"},
    ]
    said, text = summary(findings, "today")
    assert said["ratio"] == 0.5
    assert "| gpu: a step | 3,000 | 1,000 | tokens/s | **3.00** | 1.0% |" in text
    assert "| x | – | **no** |" in text
    assert "- y: no time was left" in text


@pytest.mark.slow
def test_it_runs_to_its_end_on_a_cpu(tmp_path):
    from benchmarks.__main__ import parse

    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--seconds", "3600", "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = parse("gpu", done.stdout.splitlines()[-1])
    assert said["differ"] == 0
    assert len(said["parts"]) == 7
    findings = json.loads((tmp_path / "gpu.json").read_text())["findings"]
    missing = [f["what"] for f in findings if f["kind"] == "missing"]
    assert missing == ["nanoVLM-222M step: share of idle time"]  # there is no timeline of a CPU
    told = [f["cells"] for f in findings if f["kind"] == "row" and f["table"] == "equal"]
    assert len(told) == 12 + 6 + 1 + 3
    profiled = [f["cells"] for f in findings if f["kind"] == "row" and f["table"] == "profile"]
    assert len(profiled) == 1
    assert profiled[0]["item_calls"] > 0
    same = [f["cells"] for f in findings if f["kind"] == "row" and f["table"] == "replies"]
    assert [row["what"].rsplit(",")[0] for row in same] == ["decode 135M"] * 2 + ["decode 1B"] * 2
    # The other's logits are nearly alike, which bf16 decides by chance.
    assert all(row["same_percent"] >= 50 for row in same[:2])
    assert (tmp_path / "gpu.md").read_text().startswith("20")
