"""The benchmarks import, and the harness measures what it says; their numbers are not tested."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules([str(ROOT / "benchmarks")])])
def test_every_module_imports(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert name == "harness" or callable(module.main)


class Clock:
    """Stands still until a fake run moves it; records who ran."""

    def __init__(self):
        self.now = 0.0
        self.order = ""

    def __call__(self):
        return self.now

    def side(self, letter, units, seconds):
        left = iter(seconds)

        def run():
            self.order += letter
            self.now += next(left)
            return units

        return run


def test_alternate_takes_medians_of_the_rounds_after_the_first():
    from benchmarks.harness import alternate

    clock = Clock()
    measured = alternate(
        clock.side("o", 8, [100, 1, 2, 4]),
        clock.side("p", 8, [100, 8, 8, 8]),
        rounds=3,
        clock=clock,
    )
    assert (measured.ours, measured.peer, measured.ratio) == (4.0, 1.0, 4.0)
    assert (measured.ours_seconds, measured.peer_seconds) == (2.0, 8.0)
    assert measured.spread == pytest.approx(0.75)  # rates 8, 4, 2: quartiles 6 and 3, median 4
    assert clock.order == "po" + "op" + "po" + "op"


def test_alternate_takes_the_larger_spread_of_the_two():
    from benchmarks.harness import alternate

    clock = Clock()
    measured = alternate(
        clock.side("o", 1, [1, 1, 1, 1]), clock.side("p", 8, [1, 1, 2, 4]), rounds=3, clock=clock
    )
    assert measured.spread == pytest.approx(0.75)


def test_alternate_refuses_no_rounds():
    from benchmarks.harness import alternate

    with pytest.raises(ValueError, match="at least 1"):
        alternate(lambda: 1, lambda: 1, rounds=0)


def test_the_reported_line_becomes_the_table_of_the_readme(capsys):
    from benchmarks.__main__ import names, parse, rewrite, table
    from benchmarks.harness import Comparison, report, result

    said = result("codes/s", Comparison(12604.3, 10000.0, 0.05, 1.0, 2.0), batch=8)
    report("decode", said)
    found = parse("decode", capsys.readouterr().out.splitlines()[-1])
    assert found == {
        "name": "decode",
        "ours": 12600,
        "peer": 10000,
        "ratio": 1.26,
        "unit": "codes/s",
        "spread": 0.05,
        "batch": 8,
    }
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for name in names():
        once = rewrite(readme, name, table(found, "today"))
        assert "| decode | 12,600 | 10,000 | codes/s | **1.26** | 5.0% |" in once
        assert rewrite(once, name, table(found, "today")) == once


def test_parts_become_rows():
    from benchmarks.__main__ import table

    part = {"ours": 2.0, "peer": 1.0, "ratio": 2.0, "unit": "x/s", "spread": 0.0}
    text = table({"name": "n", **part, "parts": {"a": part, "b": part}}, "today")
    assert text.count("| n: ") == 2


@pytest.mark.parametrize("line", ["", "done", "[1]", json.dumps({"name": "n", "ours": 1})])
def test_a_last_line_that_is_no_result_is_told(line):
    from benchmarks.__main__ import parse

    with pytest.raises(ValueError, match="n: its last line"):
        parse("n", line)


def test_missing_markers_are_told():
    from benchmarks.__main__ import rewrite

    with pytest.raises(ValueError, match="<!-- new -->"):
        rewrite("# nothing", "new", "table")
