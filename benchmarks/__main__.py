"""Run the benchmarks, each in its own process, and rewrite the tables of benchmarks/README.md."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import benchmarks

README = Path(__file__).with_name("README.md")
NOT_BENCHMARKS = {"__main__", "harness", "interleaved", "floors", "gpu", "data_versions"}
FIELDS = {"name", "ours", "peer", "ratio", "unit", "spread"}


def names() -> list[str]:
    """Every benchmark of this folder."""
    return [
        m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in NOT_BENCHMARKS
    ]


def run(name: str, options: list[str]) -> dict:
    """The JSON object of a benchmark's last line; its output is passed on as it comes. ValueError
    if it fails or ends otherwise."""
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}", *options]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=README.parents[1]) as job:
        assert job.stdout is not None
        for line in job.stdout:
            print(line, end="", flush=True)
            last = line if line.strip() else last
    if job.returncode:
        raise ValueError(f"{name}: ended with code {job.returncode}")
    return parse(name, last)


def parse(name: str, line: str) -> dict:
    """A benchmark's last line as an object with all FIELDS, or ValueError."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(f"{name}: its last line is no JSON: {line.strip()[:60]!r}") from None
    if not isinstance(found, dict) or FIELDS - set(found):
        raise ValueError(f"{name}: its last line must be an object with {sorted(FIELDS)}")
    return found


def table(found: dict, where: str) -> str:
    """A benchmark's table: one row, or one a part."""
    rows = [
        {**part, "name": f"{found['name']}: {name}"}
        for name, part in found.get("parts", {}).items()
    ] or [found]
    lines = [
        where,
        "",
        "| what | ours | peer | unit | ours / peer | spread |",
        "|---|--:|--:|---|--:|--:|",
    ]
    lines += [
        f"| {r['name']} | {_number(r['ours'])} | {_number(r['peer'])} | {r['unit']} "
        f"| **{r['ratio']:.2f}** | {r['spread']:.1%} |"
        for r in rows
    ]
    if found.get("rows"):
        lines += ["", *_rows(found["rows"])]
    extra = {k: v for k, v in found.items() if k not in FIELDS | {"parts", "rows"}}
    if extra:
        lines += ["", "; ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in extra.items())]
    return "\n".join(lines)


def _rows(rows: list[dict]) -> list[str]:
    """A table of what else was measured: the first column names, the others are numbers."""
    name, *numbers = rows[0]
    heads = [f"| {' | '.join(rows[0])} |", f"|---|{'--:|' * len(numbers)}"]
    return heads + [
        f"| {row[name]} | {' | '.join(_number(row[head]) for head in numbers)} |" for row in rows
    ]


def _number(value: float) -> str:
    if value != value:  # not measured
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> str:
    """Date, processor, cores, threads and versions, for the line above a table."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{datetime.date.today()}, {processor()}, {cores} cores, torch threads "
        f"{torch.get_num_threads()}, {packages}, Python {platform.python_version()}"
    )


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def rewrite(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of `name` replaced. ValueError without them."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{README.name} has no <!-- {name} --> and <!-- /{name} -->; add both")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--rounds", help="rounds of every benchmark (default: each one's own)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    options = ["--rounds", given.rounds] if given.rounds else []
    failures = []
    for name in given.names or names():
        print(f"== {name}", flush=True)
        try:
            content = table(run(name, options), machine())
            README.write_text(rewrite(README.read_text(), name, content))
        except ValueError as error:
            failures.append(str(error))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
