"""What the Makefile installs, with stand-ins for the interpreter, pip and uv that record calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTEST = "python -m pytest -n auto --maxprocesses 8"
PIN = next(p for p in (ROOT / "constraints.txt").read_text().split() if p.startswith("torch=="))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# `PYTHON -m venv .venv` puts the stand-ins into .venv; everything else goes to the real one.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {real} "$@"
mkdir -p .venv/bin
for tool in python pip uv; do cp tool .venv/bin/$tool; done
"""
# FAILS names the tool, or the tool and the argument, that ends with an error.
TOOL = """#!/bin/sh
name=$(basename "$0")
[ "$name $1" = "python -c" ] && exec {real} "$@"
echo "$name $*" >> calls
for word in "" "$@"; do case " $FAILS " in *" $name:$word "*) exit 1;; esac; done
"""


class Clone:
    """A folder with the files the Makefile reads."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name, text in (("python", PYTHON), ("tool", TOOL)):
            (folder / name).write_text(text.format(real=sys.executable))
            (folder / name).chmod(0o755)

    def make(self, *arguments: str, fails: str = "") -> tuple[int, list[str], str]:
        """The exit status, the calls and what was printed."""
        (self.folder / "calls").write_text("")
        inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "PYTHON", "TORCH_BACKEND")
        kept = {k: v for k, v in os.environ.items() if k not in inherited}
        done = subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={**kept, "FAILS": fails, "PATH": f"{self.folder}:{kept['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        calls = (self.folder / "calls").read_text().splitlines()
        return done.returncode, calls, done.stdout


@pytest.fixture
def clone(tmp_path):
    made = Clone(tmp_path)
    (tmp_path / "python3").symlink_to("python")
    return made


def torch_calls(calls: list[str]) -> list[str]:
    """The calls that install torch, by the tool and what it is asked for."""
    return [
        f"{call.split()[0]} {word}"
        for call in calls
        for word in call.split()
        if word.startswith(("--torch-backend=", "torch=="))
    ]


@pytest.mark.parametrize("backend", ["auto", "cpu", "cu130"])
def test_uv_installs_the_build_of_torch_before_the_rest(clone, backend):
    named = [] if backend == "auto" else [f"TORCH_BACKEND={backend}"]
    status, calls, printed = clone.make("test", "ARGS=-x", *named)
    assert status == 0, printed
    assert torch_calls(calls) == [f"uv --torch-backend={backend}"]
    assert "cannot be used" not in printed
    tools = [call.split()[0] for call in calls]
    assert tools == ["pip", "uv", "pip", "pip", "python"]
    assert "uv" in calls[0].split()
    assert calls[-1] == f"{PYTEST} -x"


def test_without_the_index_of_pytorch_pip_takes_any_build_and_one_line_says_so(clone):
    status, calls, printed = clone.make("test", fails="uv:")
    assert status == 0, printed
    assert torch_calls(calls) == ["uv --torch-backend=auto", f"pip {PIN}"]
    assert printed.count("PyTorch's index cannot be used") == 1
    assert calls[-1] == PYTEST


def test_a_named_build_is_never_exchanged_for_another(clone):
    status, calls, printed = clone.make("test", "TORCH_BACKEND=cu130", fails=f"uv: pip:{PIN}+cu130")
    assert status != 0
    assert torch_calls(calls) == ["uv --torch-backend=cu130", f"pip {PIN}+cu130"]
    assert calls[-1].split()[-1] == f"{PIN}+cu130", "something was installed after the refusal"
    assert "no torch==" in printed
    assert "TORCH_BACKEND=cu130" in printed


def test_later_calls_keep_the_build_and_another_name_changes_it(clone):
    assert clone.make("test", "TORCH_BACKEND=cu130")[0] == 0
    assert clone.make("test")[1] == [PYTEST]
    assert clone.make("test", "TORCH_BACKEND=cu130")[1] == [PYTEST]
    refused = clone.make("test", "TORCH_BACKEND=gpu", fails=f"uv: pip:{PIN}+gpu")
    assert refused[0] != 0
    assert clone.make("test")[1] == [PYTEST]
    _, calls, _ = clone.make("test", "TORCH_BACKEND=cpu")
    assert torch_calls(calls) == ["uv --torch-backend=cpu"]
    assert "--reinstall-package torch" in " ".join(calls), "uv keeps a torch of the same version"
    assert clone.make("test")[1] == [PYTEST]


def test_a_named_interpreter_that_venv_does_not_have_is_refused(clone):
    assert clone.make("test")[0] == 0
    other = clone.folder / "other"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    status, calls, printed = clone.make("test", "PYTHON=./other")
    assert status != 0
    assert calls == []
    assert ".venv has Python 3." in printed
    assert "make clean" in printed
    assert clone.make("test", f"PYTHON={sys.executable}")[0] == 0
