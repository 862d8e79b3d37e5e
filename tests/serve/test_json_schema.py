"""JSON schemas: what says nothing is left out, what constrains is kept or refused."""

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter

from chiasm.data.text import END, train_bpe
from chiasm.serve.constrain import Constraints
from chiasm.serve.errors import ApiError
from chiasm.serve.json_schema import constraining
from chiasm.serve.schema import ResponseFormat


class Template:
    tokenizer = train_bpe(["abc"] * 4, 265)
    stop = (tokenizer.token_to_id(END),)


CONSTRAINTS = Constraints(Template())


def rule(schema):
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    return CONSTRAINTS.rule(ResponseFormat.model_validate(wanted))


class Record(BaseModel):
    file: Path
    key: SecretStr
    data: bytes
    net: IPv4Network


UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": False}
STRING = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        Record.model_json_schema(),
        TypeAdapter(list[Path]).json_schema(),
        UNIQUE,
        {"anyOf": [UNIQUE, {"type": "string", "format": "nobody-knows"}]},
        {"type": "array", "prefixItems": [{"type": "string", "format": "x"}], "items": False},
        {"$defs": {"a": UNIQUE}, "$ref": "#/$defs/a"},
        {**STRING, "then": {"maxLength": 1}},
        {**STRING, "if": {"maxLength": 1}},
        {**UNIQUE, "minContains": 0, "contains": {"const": 3}},
        {**UNIQUE, "maxContains": 2, "unevaluatedItems": {}},
        {"type": "object", "properties": {"a": STRING}, "propertyNames": True,
         "dependentRequired": {}, "unevaluatedProperties": True},
        {**STRING, "not": False},
    ],
)  # fmt: skip
def test_annotations_are_no_constraints(schema):
    assert rule(schema).allowed(265).any()


@pytest.mark.parametrize(
    "schema",
    [
        {**UNIQUE, "uniqueItems": True},
        {**UNIQUE, "uniqueItems": 0},  # no boolean, so no schema
        {**UNIQUE, "contains": {"const": 3}},
        {**UNIQUE, "contains": {"const": 3}, "minContains": 0, "maxContains": 1},
        {**STRING, "if": {"maxLength": 1}, "then": {"minLength": 1}},
        {**STRING, "not": {"const": "a"}},
        {**STRING, "format": 5},
        {"type": "object", "propertyNames": {"maxLength": 2}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "unevaluatedProperties": False},
    ],
)
def test_what_cannot_be_kept_is_refused(schema):
    with pytest.raises(ApiError, match="the JSON schema"):
        rule(schema)


def test_names_and_values_are_not_keywords():
    schema = {
        "type": "object",
        "properties": {"format": {"const": {"uniqueItems": False}}, "uniqueItems": UNIQUE},
        "required": ["format"],
        "enum": [{"format": {"uniqueItems": False}}],
        "default": {"format": "x"},
    }
    kept = constraining(schema)
    assert kept["properties"]["format"] == schema["properties"]["format"]
    assert "uniqueItems" not in kept["properties"]["uniqueItems"]
    assert (kept["enum"], kept["default"]) == (schema["enum"], schema["default"])


def test_known_formats_are_still_kept():
    assert constraining({**STRING, "format": "date"}) == {**STRING, "format": "date"}


LEAVES = st.sampled_from([1, 2.5, "a", "abc", True, None])
VALUES = st.recursive(
    LEAVES,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("ab"), v, max_size=2),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.sampled_from([True, {}, STRING, {"type": "integer"}, {"const": "a"}, {"maxLength": 1}]),
    lambda s: st.lists(
        st.one_of(
            st.tuples(st.just("items"), s),
            st.tuples(st.just("contains"), s),
            st.tuples(st.just("minContains"), st.integers(0, 2)),
            st.tuples(st.just("maxContains"), st.integers(0, 2)),
            st.tuples(st.just("uniqueItems"), st.booleans()),
            st.tuples(st.just("properties"), st.dictionaries(st.sampled_from("ab"), s, max_size=2)),
            st.tuples(st.just("propertyNames"), s),
            st.tuples(st.just("dependentRequired"), st.sampled_from([{}, {"a": ["b"]}])),
            st.tuples(st.just("unevaluatedProperties"), s),
            st.tuples(st.just("unevaluatedItems"), s),
            st.tuples(st.just("not"), s | st.just(False)),
            st.tuples(st.just("if"), s),
            st.tuples(st.just("then"), s),
            st.tuples(st.just("else"), s),
            st.tuples(st.just("anyOf"), st.lists(s, min_size=1, max_size=2)),
            st.tuples(st.just("format"), st.sampled_from(["path", "date", "x"])),
        ),
        max_size=3,
    ).map(dict),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(SCHEMAS, VALUES)
def test_the_same_values_are_allowed(schema, value):
    """By jsonschema, to which formats are annotations as the specification says."""
    jsonschema = pytest.importorskip("jsonschema")
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert jsonschema.Draft202012Validator(constraining(schema)).is_valid(value) == valid
    json.dumps(constraining(schema))
