"""Commands and options of earlier versions mean what their new names do, with a warning."""

import dataclasses
import subprocess
import sys

import pytest

from chiasm.cli import app
from chiasm.cli.helptext import field_docstrings
from chiasm.core import aliases

POSITIONAL = {
    "generate": ["run", "a red circle"],
    "plan": ["mllm_smol"],
    "isoflop": ["--budget", "1"],
}
POSITIONAL |= {"data webpages": ["page", "--out", "o"], "data synthesize": ["charts", "--out", "o"]}
POSITIONAL |= {"merge-lora": ["run", "out"]}
VALUES = {"--strength": "0.5", "--image-size": "64 32", "--models": "unified", "--dtype": "int8"}
VALUES |= {"--match-harness": "lmms-eval"}
ROWS = [(command, old, new) for command, options in aliases.OPTIONS.items()
        for old, new in options.items()]  # fmt: skip
COMMANDS = {**app.COMMANDS, **{f"data {name}": kind for name, kind in app.DATA.items()}}
COMMANDS |= {f"sweep {name}": kind for name, kind in app.SWEEPS.items()}


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(aliases, "_told", set())


def parsed(arguments: list[str]):
    return app.parser().cli(prog="chiasm", args=app.split_overrides(arguments)[0])


@pytest.mark.parametrize(("command", "old", "new"), ROWS)
def test_an_option(command, old, new):
    value = VALUES.get(new, "7").split()
    rest = POSITIONAL.get(command, ["run"])
    expected = parsed([command, *rest, new, *value])
    with pytest.warns(aliases.RenamedWarning, match=f"'{old}' is called '{new}' now"):
        found = aliases.arguments([command, *rest, old, *value])
    assert parsed(found) == expected != parsed([command, *rest])
    assert aliases.arguments([command, f"{old}=7"]) == [command, f"{new}=7"]


@pytest.mark.parametrize(("old", "new"), aliases.COMMANDS.items())
def test_a_command(old, new):
    rest = POSITIONAL[new]
    with pytest.warns(aliases.RenamedWarning, match=f"'{old}' is called '{new}' now"):
        found = aliases.arguments([*old.split(), *rest])
    assert found == [*new.split(), *rest]
    assert isinstance(parsed(found), COMMANDS[new])


def test_values_and_other_commands_are_left_alone():
    for words in (["data", "synthesize", "charts", "--count", "5"], ["chat", "draw", "duel"], []):
        assert aliases.arguments(words) == words


def test_typed_in_the_terminal():
    """The warning is one line on stderr; the help shows the names of now alone."""
    done = subprocess.run(
        [sys.executable, "-m", "chiasm", "draw", "run", "x", "--count", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: 'draw' is called 'generate' now, '--count' is called")
    assert error.startswith("error: --num-images 0")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_its_help(name):
    kind = COMMANDS[name]
    assert kind.__doc__
    said = field_docstrings(kind)
    options = {field.name for field in dataclasses.fields(kind) if field.init}
    assert options - said.keys() <= {"run", "recipe"}  # of options.RunFolder and RecipeName
    assert not any("\n" in text for text in said.values())


def test_help_names_metavars_and_every_recipe(capsys):
    from chiasm.recipes.recipe import NAMES

    with pytest.raises(SystemExit):
        app.main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[TRAIN OPTIONS] RECIPE" in shown
    assert ", ".join(NAMES) in shown
