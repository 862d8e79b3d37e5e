"""What pyproject.toml declares, against the lines that errors, docs and CI tell people to use."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import chiasm
from chiasm.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"mlflow": "mlflow-skinny"}
"""Packages that are imported under another name than they are installed under."""

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "benchmarks").rglob("*.*"),
    *(ROOT / "launch").glob("*"),
    *(ROOT / "src").rglob("*.py"),
]


def packages(extra: str) -> set[str]:
    """Names of the packages of an extra, those of the extras it takes in among them."""
    found: set[str] = set()
    for line in EXTRAS[extra]:
        if taken := re.fullmatch(r"chiasm\[(.+)\]", line):
            found |= set().union(*map(packages, taken[1].split(",")))
        else:
            found.add(re.split(r"[\[<>=! ]", line)[0])
    return found


def called(node: ast.AST) -> str:
    """The last name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", None) or getattr(function, "attr", "")


def values(argument: ast.expr, tree: ast.AST, call: ast.Call) -> list[str | None]:
    """What an argument of a call can be: itself, or what the callers of the function pass whose
    parameter it is. Fails where neither can be read off."""
    if isinstance(argument, ast.Constant):
        return [argument.value]
    assert isinstance(argument, ast.Name), f"line {call.lineno}: give the name itself"
    functions = [
        f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and call in ast.walk(f)
    ]
    names = [parameter.arg for parameter in functions[-1].args.args]
    callers = [c for c in ast.walk(tree) if called(c) == functions[-1].name]
    found = [c.args[names.index(argument.id)] for c in callers]  # pyright: ignore
    assert found
    assert all(isinstance(value, ast.Constant) for value in found)
    return [value.value for value in found]  # pyright: ignore


def missing_extras():
    """(where, package, extra) of every MissingExtraError of the package; None for a package whose
    name comes from elsewhere."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        text = file.read_text()
        if "MissingExtraError(" not in text:
            continue
        tree = ast.parse(text)
        for call in (node for node in ast.walk(tree) if called(node) == "MissingExtraError"):
            package, extra = call.args[:2]
            extras = values(extra, tree, call)
            computed = not isinstance(package, (ast.Constant, ast.Name))
            named = [None] * len(extras) if computed else values(package, tree, call)
            where = f"{file.relative_to(ROOT)}:{call.lineno}"
            yield from zip(itertools.repeat(where), named, extras, strict=False)


def test_every_missing_package_is_in_the_extra_that_its_error_names():
    found = list(missing_extras())
    assert len(found) > 20
    for where, package, extra in found:
        if extra is None:
            assert package in (ROOT / "Makefile").read_text(), where
            continue
        assert extra in EXTRAS, f"{where}: no extra '{extra}' in pyproject.toml"
        brings = packages(extra)
        assert package is None or DISTRIBUTIONS.get(package, package) in brings, where


def test_every_extra_that_pages_and_errors_name_is_declared():
    named = {
        (str(page.relative_to(ROOT)), extra)
        for page in PAGES
        if page.is_file() and page.name not in ("LOG.md", "CHANGELOG.md")
        for line in page.read_text(errors="ignore").splitlines()
        for extras in re.findall(r"'[./\w]*\[([a-z0-9,]+)\]'|extra [`']([a-z0-9]+)[`']", line)
        if "install" in line or "extra " in line
        for extra in "".join(extras).split(",")
    }
    assert {extra for _, extra in named} >= {"serve", "pdf", "video"}
    assert {(page, extra) for page, extra in named if extra not in EXTRAS} == set()


def test_no_page_installs_chiasm_from_an_index_that_does_not_have_it():
    for page in PAGES:
        if page.is_file() and page.name not in ("LOG.md", "CHANGELOG.md"):
            assert "install 'chiasm" not in page.read_text(errors="ignore"), page


def test_the_version_is_written_once_and_printed(capsys):
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    main(["--version"])
    assert capsys.readouterr().out == f"chiasm {chiasm.__version__}\n"


def test_the_help_names_the_version_and_describes_the_program(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "chiasm --version" in printed
    assert "vision language models" in printed


def test_the_package_says_that_it_is_typed():
    assert (Path(chiasm.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_hooks_of_pre_commit_are_what_ci_runs():
    targets = re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "lint" in targets
    linters = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "lint"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    rest = [f"make {target}" for target in targets if target != "lint"]
    assert [hook["entry"] for hook in hooks] == linters + rest
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_every_file_that_contributing_names_is_there():
    named = re.findall(r"`([\w.-]*/[\w./-]+|[\w-]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
