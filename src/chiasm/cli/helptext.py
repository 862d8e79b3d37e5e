"""Help of options from the docstrings under a command's fields, each as one paragraph: tyro keeps
the line breaks of the source."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from typing import Annotated

from tyro.conf import arg


def field_docstrings(command: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases, as one line."""
    found: dict[str, str] = {}
    for base in reversed(command.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match after:
                    case ast.Expr(ast.Constant(str(text))):
                        found[field.target.id] = " ".join(text.split())
    return found


def describe_options(command: type) -> None:
    """Give the options of a command their help, and its own docstring without line breaks."""
    hints = typing.get_type_hints(command, include_extras=True)
    said = field_docstrings(command)
    command.__annotations__ = {
        name: Annotated[hint, arg(help=said[name])] if name in said else hint
        for name, hint in hints.items()
    }
    command.__doc__ = " ".join((command.__doc__ or "").split())
