"""Parts by name: a tag for what chiasm has, `module:Class` for a class of the user's own.

Code is run only where the user said so. A name `module:Class` is looked up in a module that

- is imported already, as by a script or a notebook,
- or that the user allowed: `chiasm --allow-custom my_parts ...` (a module, or a file my_parts.py),
  `allow_custom("my_parts")`, `load(run, allow_custom=("my_parts",))`, the environment variable
  CHIASM_ALLOW_CUSTOM, or by writing the name on the command line or in a recipe.

A name that merely stands in the JSON of a saved run imports nothing, and whatever is found must be
of the kind wanted (a subclass of CustomProjector, a Metric, ...).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from chiasm.core.errors import ConfigError
from chiasm.core.synonyms import advice, meant

T = TypeVar("T")
VARIABLE = "CHIASM_ALLOW_CUSTOM"
"""Comma-separated modules and files; an environment variable, so that workers inherit it."""
REFERENCE = re.compile(r"(?<![\w./:-])([A-Za-z_]\w*(?:\.\w+)*):[A-Za-z_]\w*(?![\w/])")
"""`module:Class` in a text."""


def nearest(word: object, known: Iterable[object]) -> str:
    """'; did you mean ...?' with the known name that the word stands for elsewhere
    (core/synonyms.py), or else the closest one; or nothing."""
    import difflib

    names = [str(k) for k in known]
    synonym = meant(str(word), names)
    if synonym is None and (said := advice(str(word))):
        return f"; {said}"
    match = synonym or next(iter(difflib.get_close_matches(str(word), names, 1, 0.5)), None)
    return f"; did you mean '{match}'?" if match else ""


def allow_custom(*names: str) -> None:
    """Import modules of the user's own (by name, or files ending in .py) and let `module:Class`
    find classes in them. Raises ConfigError for one that is not there."""
    for name in names:
        if name.endswith(".py"):
            path = Path(name).expanduser().absolute()
            if not path.is_file():
                raise ConfigError(f"{name}: no such file; --allow-custom takes a module or a file")
            if import_file(path) is not sys.modules.get(path.stem):
                raise ConfigError(
                    f"{name}: another module is called {path.stem} already; rename the file"
                )
            name = str(path)
        else:
            _import(name)
        _remember(name)


def allow_named(texts: Iterable[str]) -> None:
    """Let every `module:Class` in texts that the user wrote find its class, when it is used."""
    for text in texts:
        for match in REFERENCE.finditer(text):
            _remember(match[1])


def import_file(path: Path) -> ModuleType:
    """A Python file as a module called like it, unless another module has that name already."""
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known is None:
        sys.modules[path.stem] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is None:
            del sys.modules[path.stem]
        raise
    return module


def own(name: str) -> Any:
    """What `module:Class` names, by the rule above. Raises ConfigError where it is not allowed, not
    there, or defined inside a function."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        found = _import_allowed(module, name)
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(sys.modules.get(module), "__file__", None) or module
            if module == "__main__":
                where = "the script that runs now; put the class into a module of its own"
            raise ConfigError(f"'{name}': there is no {path} in {where}")
        found = getattr(found, part)
    return found


def own_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names. Its module must be allowed, not only imported:
    functions have no base class by which those meant to be called are told. Raises ConfigError."""
    module = name.partition(":")[0]
    if all(module not in (allowed, Path(allowed).stem) for allowed in _allowed()):
        raise ConfigError(
            f"'{name}': the module {module} is not allowed, and a file does not choose what code "
            f"is run; say --allow-custom {module} (or its .py file)"
        )
    found = own(name)
    if not callable(found):
        raise ConfigError(f"'{name}' is a {type(found).__name__}; name a function")
    return found


class Registry(Mapping[str, T], Generic[T]):
    """Parts of one kind by tag, in the order they were registered.

    what: the kind, for errors. base: what a part is an instance of, or, with `classes`, a subclass;
    otherwise a subclass of the user's own stands for an object of it, made without arguments.
    entries: tag -> part, or "module:NAME" of chiasm, imported when used.
    """

    def __init__(
        self,
        what: str,
        base: Any,
        entries: Mapping[str, T | str] | None = None,
        classes: bool = False,
    ):
        self.what, self.base, self.classes = what, base, classes
        self._entries: dict[str, T | str] = dict(entries or {})
        self._built_in = frozenset(self._entries)

    def __getitem__(self, tag: str) -> T:
        found = self._entries[tag]
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = self._entries[tag] = getattr(importlib.import_module(module), name)
        return found  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, tag: str, part: T | None = None) -> Callable[[T], T]:
        """Give a part a tag: `register("my_tag", part)`, or above a class `@REGISTRY.register(
        "my_tag")`. Raises ConfigError for a tag that another part has, or one with a colon."""

        def add(part: T) -> T:
            known = self._entries.get(tag)
            again = tag not in self._built_in and _again(known, part)
            if known is not None and known is not part and not again:
                raise ConfigError(f"the tag '{tag}' belongs to another {self.what}; choose one")
            if ":" in tag:
                raise ConfigError(f"the tag '{tag}' has a colon, which module:Class is told by")
            self._entries[tag] = self.checked(part, tag)
            return part

        if part is not None:
            add(part)
        return add

    def find(self, name: str) -> T:
        """The part of a tag, or of `module:Class`. Raises ConfigError naming the nearest tag."""
        if name in self._entries:
            return self[name]
        if REFERENCE.fullmatch(name):
            return self.checked(own(name), name)
        raise ConfigError(
            f"unknown {self.what} '{name}'{nearest(name, self)}; there are {', '.join(self)}, "
            "or module:Class of your own"
        )

    def checked(self, found: Any, name: str) -> T:
        """`found` if it is of this registry's kind, else ConfigError."""
        inherits = isinstance(found, type) and self.base in found.__mro__
        if inherits and not self.classes:
            found = found()
        if not (inherits if self.classes else isinstance(found, self.base)):
            kind = f"{'subclass of ' if self.classes else ''}{self.base.__name__}"
            raise ConfigError(f"'{name}' is no {self.what}: it must be a {kind}")
        return found  # type: ignore[return-value]


def _again(known: Any, part: Any) -> bool:
    """Whether a part is defined once more, as by a notebook's cell that is run again."""
    old, new = (one if isinstance(one, type) else type(one) for one in (known, part))
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _allowed() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def _remember(name: str) -> None:
    if name not in (known := _allowed()):
        os.environ[VARIABLE] = ",".join([*known, name])


def _import_allowed(module: str, name: str) -> ModuleType:
    for allowed in _allowed():
        if allowed == module:
            return _import(module)
        if allowed.endswith(".py") and Path(allowed).stem == module:
            return import_file(Path(allowed))
    raise ConfigError(
        f"'{name}' is of the module {module}, which is not imported: a file does not choose what "
        f"code is run; say --allow-custom {module} (or its .py file), or import it first"
    )


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"no module called '{module}' can be imported; set PYTHONPATH to its folder, or say "
            f"--allow-custom {module.replace('.', '/')}.py"
        ) from None
