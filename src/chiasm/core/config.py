"""Recipes as dataclasses: override by dotted name, save as JSON, load strictly.

JSON says which class an object is of by "kind": the tag that the class is registered under, or
`module:Class` for one of the user's own (core/registry.py). Names of earlier versions, of classes,
fields and values, stand in core/aliases.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from chiasm.core import aliases
from chiasm.core.errors import ConfigError
from chiasm.core.registry import REFERENCE, Registry, allow_named, nearest, own

__all__ = ["Custom", "from_dict", "identity", "leaves", "nearest", "override", "tag", "to_dict"]

C = TypeVar("C")
K = TypeVar("K", bound=type)

CONFIGS: Registry[Any] = Registry("configuration", object, classes=True)
"""tag -> dataclass, of everything that is saved."""
_TAGS: dict[type, str] = {}

_FIRST_KINDS = {tag: name for name, tag in aliases.KINDS.items()}
_FIRST_FIELDS = {
    tag: {new: old for old, new in names.items()} for tag, names in aliases.FIELDS.items()
}


class Custom:
    """Base of the bases (CustomProjector, ...) that configurations of the user's own are subclasses
    of, as dataclasses. A union that has such a base as a member takes any of its subclasses."""


def tag(name: str) -> Callable[[K], K]:
    """Register a dataclass under the tag that it is saved by, which stays when it is renamed. Its
    fields may be given by the names of earlier versions too."""

    def add(kind: K) -> K:
        CONFIGS.register(name, kind)
        _TAGS[kind] = name
        if name in aliases.FIELDS:
            _take_old_names(kind, name)
        return kind

    return add


def _take_old_names(kind: type, name: str) -> None:
    init = kind.__init__

    @functools.wraps(init)
    def translated(self: Any, *arguments: Any, **given: Any) -> None:
        own = dataclasses.fields(kind)
        if len(arguments) <= len(own):  # else too many: init says so
            named = dict(zip((f.name for f in own), arguments, strict=False))
            with aliases.one_warning():
                given = aliases.fields(name, named | given, kind.__name__)
            arguments = ()
            for f in own:
                if dataclasses.is_dataclass(f.default) and isinstance(given.get(f.name), dict):
                    given[f.name] = dataclasses.replace(f.default, **given[f.name])  # type: ignore[type-var]
        init(self, *arguments, **given)

    kind.__init__ = translated


def tag_of(kind: type) -> str:
    """What a class is saved as: its tag, or module:Class where it has none."""
    return _TAGS.get(kind) or f"{kind.__module__}:{kind.__qualname__}"


def current(kind: Any) -> Any:
    """A saved "kind" as it is called now; warns once of a name of an earlier version."""
    return aliases.renamed(kind, aliases.KINDS.get(kind, kind)) if isinstance(kind, str) else kind


def to_dict(config: Any) -> Any:
    """Plain JSON values of a (nested) dataclass; "kind" says which it is. Raises ConfigError for a
    class of the user's own that could not be found again."""
    return _plain(config, _lasting)


def identity(config: Any) -> Any:
    """to_dict with kinds and fields as they were first called: what digests of codes and features
    that are kept on disk are made of."""
    return _plain(config, lambda kind: _FIRST_KINDS.get(tag_of(kind), tag_of(kind)), _FIRST_FIELDS)


def _plain(
    config: Any, name: Callable[[type], str], fields: Mapping[str, Mapping[str, str]] | None = None
) -> Any:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = (fields or {}).get(tag_of(type(config)), {})
        body = {
            names.get(f.name, f.name): _plain(getattr(config, f.name), name, fields)
            for f in dataclasses.fields(config)
        }
        if "kind" in body:  # it would overwrite the tag and be lost on the way back
            raise ConfigError(f"{type(config).__name__}: a field cannot be named 'kind'; rename it")
        return {"kind": name(type(config)), **body}
    if isinstance(config, Custom):
        raise ConfigError(
            f"{type(config).__name__} is saved by its fields; make it a dataclass: "
            "@dataclass(frozen=True)"
        )
    if isinstance(config, (list, tuple)):
        return [_plain(item, name, fields) for item in config]
    if isinstance(config, dict):
        return {key: _plain(value, name, fields) for key, value in config.items()}
    return config


def _lasting(kind: type) -> str:
    found = tag_of(kind)
    if issubclass(kind, Custom) and "<locals>" in found:
        raise ConfigError(
            f"{found}: a class inside a function cannot be found again by who loads the run; move "
            "it to the top of a module"
        )
    return found


def from_dict(kind: Any, value: Any, where: str = "config") -> Any:
    """The inverse of to_dict for a type; ConfigError names an unknown, missing or ill-typed key.
    Names of earlier versions are read, with one warning (core/aliases.py)."""
    with aliases.one_warning():
        return _from_dict(kind, value, where)


def _from_dict(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _from_union(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _from_object(kind, value, where)
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), where, kind, value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_dict(arguments[0], v, f"{where}.{i}") for i, v in enumerate(value))
        _expect(len(value) == len(arguments), where, kind, value)
        return tuple(
            from_dict(a, v, f"{where}.{i}")
            for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is list:
        _expect(isinstance(value, (list, tuple)), where, kind, value)
        return [from_dict(arguments[0], v, f"{where}.{i}") for i, v in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), where, kind, value)
        return {k: from_dict(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(
                f"{where}: '{value}' is not one of {choices}{nearest(value, arguments)}"
            )
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where}: expected {_name(kind)}, found {value!r}")


def override(config: C, settings: dict[str, str], what: str = "recipe") -> C:
    """A copy of a dataclass with dotted fields set from text, e.g. {"stages.0.steps": "500"}.

    Text is read as JSON where the field is not a string. Fields may have their names of earlier
    versions, with a warning. Raises ConfigError naming the nearest field for an unknown one.
    """
    with aliases.one_warning():
        settings = {current_path(config, key): text for key, text in settings.items()}
        return _override(config, settings, what)


def _override(config: C, settings: dict[str, str], what: str) -> C:
    known = leaves(config)
    tree = to_dict(config)
    allow_named(settings.values())
    for key, text in settings.items():
        parent = key.rpartition(".")[0]
        open_ended = isinstance(_at(tree, parent), dict) and "kind" not in _at(tree, parent)
        whole_object = isinstance(_at(tree, key), dict)
        if key not in known and not whole_object and not (parent and open_ended):
            raise ConfigError(f"unknown field '{key}' in {what}{nearest(key, known)}")
        _put(tree, key, _parse(text, known.get(key)))
    return from_dict(type(config), tree, what)


def current_path(config: Any, key: str) -> str:
    """A dotted name with every field as it is called now."""
    node, path = config, []
    model = tag_of(type(getattr(config, "model", None)))
    for part in key.split("."):
        name = part
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            body = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
            name = aliases.field(tag_of(type(node)), part, body, model)
        elif path and path[-1] in ("lr", "groups"):
            name = aliases.group(part)
        for step in name.split("."):
            path.append(step)
            node = _child(node, step)
    return ".".join(path)


def _child(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, list | tuple):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    return getattr(node, name, None)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every settable dotted name with its present value."""
    found: dict[str, Any] = {}
    tree = to_dict(config)

    def walk(node: Any, name: str) -> None:
        if name:
            found[name] = node
        if isinstance(node, dict):
            for key, child in node.items():
                if key != "kind":
                    walk(child, f"{name}.{key}" if name else key)
        elif isinstance(node, list) and any(isinstance(child, dict) for child in node):
            for i, child in enumerate(node):
                walk(child, f"{name}.{i}" if name else str(i))

    walk(tree, prefix)
    return {k: v for k, v in found.items() if not (isinstance(v, dict) and "kind" in v)}


def _from_union(options: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    if isinstance(value, str) and all(map(_is_config, kinds)):
        value = {"kind": value}
    if isinstance(value, dict) and "kind" in value and any(map(_is_config, kinds)):
        return _from_object(_class_of(value["kind"], kinds, where), value, where)
    errors = []
    for option in kinds:
        try:
            return from_dict(option, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _is_config(option: Any) -> bool:
    return dataclasses.is_dataclass(option) or _is_open(option)


def _is_open(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, Custom)


def _class_of(kind: Any, options: list, where: str) -> type:
    """The member of a union that a saved "kind" means, or a subclass of an open member."""
    kind = current(kind)
    known: dict[str, type] = {tag_of(o): o for o in options if dataclasses.is_dataclass(o)}  # type: ignore[misc]
    if kind in known:
        return known[kind]
    bases = tuple(option for option in options if _is_open(option))
    found = None
    if bases and isinstance(kind, str):
        found = CONFIGS.get(kind) or (own(kind) if REFERENCE.fullmatch(kind) else None)
    if isinstance(found, type) and issubclass(found, bases):
        if not dataclasses.is_dataclass(found):
            raise ConfigError(f"{where}: {kind} is no dataclass; write @dataclass(frozen=True)")
        return found
    if found is not None:
        names = " or ".join(base.__name__ for base in bases)
        raise ConfigError(f"{where}: {kind} is no subclass of {names}")
    more = ", or module:Class of your own" if bases else ""
    raise ConfigError(
        f"{where}: unknown kind '{kind}', expected one of {list(known)}{more}{nearest(kind, known)}"
    )


def _from_object(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, kind, value)
    _expect(current(value.get("kind", tag_of(kind))) == tag_of(kind), where, kind, value)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    body = {k: v for k, v in value.items() if k != "kind"}
    body = aliases.fields(tag_of(kind), body, where)
    for key in body:
        if key not in fields:
            raise ConfigError(f"unknown field '{key}' in {where}{nearest(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in body:
            raise ConfigError(f"{where}: the field '{name}' of {kind.__name__} is missing")
    return kind(**{k: from_dict(hints[k], v, f"{where}.{k}") for k, v in body.items()})


def _expect(condition: bool, where: str, kind: Any, value: Any) -> None:
    if not condition:
        raise ConfigError(f"{where}: expected {_name(kind)}, found {value!r}")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)


def _parse(text: str, present: Any) -> Any:
    if isinstance(present, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _at(tree: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return None
    return tree


def _put(tree: Any, key: str, value: Any) -> None:
    parent, _, last = key.rpartition(".")
    node = _at(tree, parent)
    node[int(last) if isinstance(node, list) else last] = value
