"""JSON schemas without the keywords that allow everything (JSON Schema 2020-12).

The grammar compiler refuses every keyword that it cannot keep, also where it says nothing: pydantic
writes `"format": "path"`, others `"uniqueItems": false`. What constrains stays, so that a schema
that cannot be kept is still refused.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

_ONE = {
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items",
    "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LIST = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}
_BY_NAME = {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties",
            "properties"}  # fmt: skip

_EVERYTHING = ({}, True)
_NOTHING_SAID: dict[str, tuple[Any, ...]] = {
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "not": (False,),
    "propertyNames": _EVERYTHING,
    "unevaluatedItems": _EVERYTHING,
    "unevaluatedProperties": _EVERYTHING,
    "uniqueItems": (False,),
}
"""Values with which a keyword allows every instance."""

_NEEDS = {"minContains": ("contains",), "maxContains": ("contains",), "then": ("if",),
          "else": ("if",), "if": ("then", "else")}  # fmt: skip
"""Keywords that by the specification are ignored where none of these stands beside them."""


def constraining(schema: Any) -> Any:
    """A copy of a schema with only the keywords that constrain. Names of properties and values
    (const, enum, default, examples) are no keywords and stay."""
    if not isinstance(schema, dict):
        return schema
    told = {key: _inner(key, value) for key, value in schema.items()}
    if told.get("minContains") == 0 and "maxContains" not in told:
        told.pop("contains", None)  # any number of items may be such ones
    return {key: value for key, value in told.items() if _constrains(key, value, told)}


def _inner(key: str, value: Any) -> Any:
    if key in _LIST and isinstance(value, list):
        return [constraining(each) for each in value]
    if key in _BY_NAME and isinstance(value, dict):
        return {name: constraining(each) for name, each in value.items()}
    return constraining(value) if key in _ONE else value


def _constrains(key: str, value: Any, beside: dict[str, Any]) -> bool:
    if key == "format" and isinstance(value, str):
        return _knows(value)
    if any(value is said or (said == {} == value) for said in _NOTHING_SAID.get(key, ())):
        return False
    return key not in _NEEDS or any(other in beside for other in _NEEDS[key])


@lru_cache(maxsize=256)
def _knows(name: str) -> bool:
    """Whether the compiler knows a format. Others are annotations (2020-12 validation, section
    7.2.3)."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "format": name}))
    except ValueError:
        return False
    return not LLMatcher.validate_grammar(grammar)
