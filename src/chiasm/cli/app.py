"""The program: which command, its arguments, its errors. Nothing heavy is imported before the
arguments are known to be right."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings

import tyro
from rich.console import Console
from rich.markup import escape

from chiasm import __version__
from chiasm.cli.chat import Chat
from chiasm.cli.compare import Compare
from chiasm.cli.data_collect import Pdf, Synthesize, Video, Webpages
from chiasm.cli.data_convert import Filter, Import
from chiasm.cli.data_inspect import Inspect
from chiasm.cli.data_sample import Sample
from chiasm.cli.demo import Demo
from chiasm.cli.eval import Eval
from chiasm.cli.export import Export
from chiasm.cli.generate import Generate
from chiasm.cli.helptext import describe_options
from chiasm.cli.isoflop import Isoflop
from chiasm.cli.merge_lora import MergeLora
from chiasm.cli.plan import Plan
from chiasm.cli.precompute import Precompute
from chiasm.cli.serve import Serve
from chiasm.cli.sweep import Drift, Stability
from chiasm.cli.train import Train
from chiasm.core import aliases, registry
from chiasm.core.allocator import keep_freed_memory
from chiasm.core.errors import ChiasmError, ConfigError, InterruptedRunError

DESCRIPTION = """Build, train, evaluate and compare vision language models by two routes: MLLM (a
vision encoder, a projector and a language model) and unified (one transformer over text and image
tokens). `chiasm COMMAND --help` describes a command, `chiasm --version` prints the version. Every
command takes `--allow-custom MODULE` (or a .py file): parts of your own that a recipe or a saved
run names module:Class are imported from it."""
COMMANDS = {
    "demo": Demo,
    "train": Train,
    "precompute": Precompute,
    "plan": Plan,
    "eval": Eval,
    "compare": Compare,
    "isoflop": Isoflop,
    "chat": Chat,
    "merge-lora": MergeLora,
    "export": Export,
    "generate": Generate,
    "serve": Serve,
}
DATA = {
    "synthesize": Synthesize,
    "pdf": Pdf,
    "webpages": Webpages,
    "video": Video,
    "import": Import,
    "inspect": Inspect,
    "filter": Filter,
    "sample": Sample,
}
SWEEPS = {"stability": Stability, "drift": Drift}
WITH_OVERRIDES = {"train": Train, "plan": Plan}
"""Commands that take the fields of a recipe as options."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line and exit code 2 for every error a user can mend."""
    keep_freed_memory()
    warnings.formatwarning = _warning_line
    try:
        given = allow_own_code(sys.argv[1:] if arguments is None else arguments)
        given, overrides = split_overrides(aliases.arguments(given))
        if given[:1] == ["--version"]:
            print(f"chiasm {__version__}")
            return
        if {"-h", "--help"} & set(given):
            for kind in (*COMMANDS.values(), *DATA.values(), *SWEEPS.values()):
                describe_options(kind)
        command = parser().cli(prog="chiasm", args=given, description=DESCRIPTION)
        if given[0] in WITH_OVERRIDES:
            command.overrides = overrides
        command()
        sys.stdout.flush()
    except InterruptedRunError as error:
        Console(stderr=True).print(escape(str(error)), soft_wrap=True)
        sys.exit(error.code)
    except ChiasmError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Who read our output has seen enough (| head); what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parser() -> tyro.extras.SubcommandApp:
    """All commands; `cli` returns the one that was typed, to be called."""
    app = _group(COMMANDS)
    app.command(_group(DATA), name="data", help="Make, import, inspect and filter data sets.")
    app.command(
        _group(SWEEPS), name="sweep", help="Which settings keep training stable, on small models."
    )
    return app


def _group(commands: dict[str, type]) -> tyro.extras.SubcommandApp:
    group = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        group.command(name=name)(command)
    return group


def allow_own_code(arguments: list[str]) -> list[str]:
    """The arguments without --allow-custom NAME, of any command: imports these modules of the
    user's own. Names `module:Class` among the others may be imported when they are used."""
    kept, allowed = [], []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--allow-custom":
            kept.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value:
            raise ConfigError("--allow-custom: write a module, or a file that ends in .py")
        allowed += value.split(",")
    registry.allow_custom(*allowed)
    registry.allow_named(kept)
    return kept


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments of `train` and `plan` that are fields of the recipe (--model.hidden_size 384,
    --seed=1) apart from the command's own."""
    command = WITH_OVERRIDES.get(arguments[0]) if arguments else None
    if command is None:
        return arguments, {}
    own = {"--help", *(f"--{no}{field.name}" for field in dataclasses.fields(command)
                       if field.init for no in ("", "no_"))}  # fmt: skip
    kept, dotted = [], {}
    for i, argument in enumerate(arguments):
        if argument == "--resume" and arguments[i + 1 : i + 2] not in (["yes"], ["no"], ["auto"]):
            arguments = [*arguments[:i], "--resume", "yes", *arguments[i + 1 :]]
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        if not argument.startswith("--") or name in own:
            kept.append(argument)
            continue
        if not equals:
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"{argument}: a value is missing; write {argument} VALUE")
        dotted[name[2:]] = value
    return kept, dotted


def _warning_line(message: object, category: type[Warning], *place: object) -> str:
    """One line on stderr, without the place in our code that warned."""
    return f"warning: {message}\n"
