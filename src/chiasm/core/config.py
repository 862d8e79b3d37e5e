"""Recipes as dataclasses: override by dotted name, save as JSON, load strictly."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, TypeVar

from chiasm.core.errors import ConfigError

C = TypeVar("C")


def to_dict(config: Any) -> Any:
    """Plain JSON values of a (nested) dataclass; a union member is tagged with its class name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        body = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        if "kind" in body:  # it would overwrite the tag and be lost on the way back
            raise ConfigError(f"{type(config).__name__}: a field cannot be named 'kind'; rename it")
        return {"kind": type(config).__name__, **body}
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(kind: Any, value: Any, where: str = "config") -> Any:
    """The inverse of to_dict for a type; ConfigError names an unknown, missing or ill-typed key."""
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

    Text is read as JSON where the field is not a string. Raises ConfigError naming the nearest
    field for an unknown one.
    """
    known = leaves(config)
    tree = to_dict(config)
    for key, text in settings.items():
        parent = key.rpartition(".")[0]
        open_ended = isinstance(_at(tree, parent), dict) and "kind" not in _at(tree, parent)
        whole_object = isinstance(_at(tree, key), dict)
        if key not in known and not whole_object and not (parent and open_ended):
            raise ConfigError(f"unknown field '{key}' in {what}{nearest(key, known)}")
        _put(tree, key, _parse(text, known.get(key)))
    return from_dict(type(config), tree, what)


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


def nearest(word: object, known: typing.Iterable[object]) -> str:
    """'; did you mean ...?' with the closest of the known names, or nothing."""
    match = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def _from_union(options: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    if isinstance(value, dict) and "kind" in value:
        for option in options:
            if getattr(option, "__name__", "") == value["kind"]:
                return from_dict(option, value, where)
        names = [getattr(o, "__name__", str(o)) for o in options]
        hint = nearest(value["kind"], names)
        raise ConfigError(f"{where}: unknown kind '{value['kind']}', expected one of {names}{hint}")
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return from_dict(option, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _from_object(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, kind, value)
    _expect(value.get("kind", kind.__name__) == kind.__name__, where, kind, value)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    body = {k: v for k, v in value.items() if k != "kind"}
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
