"""Writes docs/reference.md: every field that a recipe can set, from the classes themselves.

python docs/make_reference.py; tests/test_docs_site.py compares the page with what this gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from chiasm.core.config import tag_of
from chiasm.recipes.recipe import Recipe

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Fields of a recipe

Made by `python docs/make_reference.py` from the classes; do not edit. A field is set as
`--stages.0.steps 500` or `--model.projector.merge 2` on the command line and as
`**{"stages.0.steps": 500}` in Python; `chiasm train RECIPE --show` prints those of a recipe with
their values. An object with a kind is chosen as JSON: `--model.projector '{"kind": "mlp"}'`.
Names of earlier versions (`--stages.0.batch`, `chiasm draw`, an old recipe.json) are read too, with
a warning that names the new one.
"""


def classes() -> list[type]:
    """The dataclasses that a recipe is made of, each behind the first that has it as a field."""
    found: dict[type, None] = {}

    def add(cls: type) -> None:
        if cls in found:
            return
        found[cls] = None
        for hint in get_type_hints(cls).values():
            for inner in named(hint):
                if is_dataclass(inner):
                    add(inner)

    add(Recipe)
    return list(found)


def named(hint: Any) -> Iterator[type]:
    """The classes that an annotation names."""
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for inner in get_args(hint):
        yield from named(inner)


def section(cls: type) -> str:
    """Heading, docstring and a row for each field."""
    tag = tag_of(cls)
    kind = "" if ":" in tag else f' (`"kind": "{tag}"`)'
    rows = [f"| `{f.name}` | `{written(f.type)}` | {default(f)} |" for f in fields(cls)]
    table = "\n".join(["| field | type | default |", "|---|---|---|", *rows]) if rows else ""
    return f"## {cls.__name__}{kind}\n\n{prose(cls)}\n\n{table}\n".replace("\n\n\n", "\n\n")


def prose(cls: type) -> str:
    """The docstring; names of fields with an underscore, or before a colon, stand as code."""
    text = inspect.cleandoc(cls.__doc__ or "")
    if text.startswith(f"{cls.__name__}("):  # a dataclass without one of its own
        return ""
    for name in (field.name for field in fields(cls)):
        after = r"\b" if "_" in name else r"(?=:\s|, [a-z_]+:\s)"
        text = re.sub(rf"(?<![\w`.]){name}{after}", f"`{name}`", text)
    return text


def written(hint: object) -> str:
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    return text.replace("|", "\\|")


def default(field: Any) -> str:
    if is_dataclass(field.default):
        return f"`{type(field.default).__name__}`"
    if field.default is not MISSING:
        return f"`{field.default!r}`".replace("|", "\\|")
    return "made" if field.default_factory is not MISSING else "required"


def page() -> str:
    return "\n".join([HEAD, *map(section, classes())])


if __name__ == "__main__":
    PAGE.write_text(page())
