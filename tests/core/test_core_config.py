import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.config import from_dict, leaves, nearest, override, tag, to_dict
from chiasm.core.errors import ConfigError


@tag("toy_mlp")
@dataclass(frozen=True)
class Mlp:
    width: int = 8


@tag("toy_pool")
@dataclass(frozen=True)
class Pool:
    ratio: float = 0.5
    kernel: tuple[int, int] = (2, 2)


@tag("toy_step")
@dataclass(frozen=True)
class Step:
    name: str
    steps: int = 10
    lr: dict[str, float] = field(default_factory=dict)
    schedule: Literal["constant", "cosine"] = "cosine"


@tag("toy_toy")
@dataclass(frozen=True)
class Toy:
    part: Mlp | Pool = Mlp()
    stages: tuple[Step, ...] = ()
    names: list[str] = field(default_factory=list)
    limit: int | None = None
    on: bool = False
    note: str = ""


@tag("toy_tagged")
@dataclass(frozen=True)
class Tagged:
    kind: str = "a"


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text('abé\n"😀', max_size=6)
keys = st.text("abz_", min_size=1, max_size=6)
steps = st.builds(
    Step,
    words,
    st.integers(),
    st.dictionaries(keys, numbers, max_size=3),
    st.sampled_from(["constant", "cosine"]),
)
pools = st.builds(Pool, numbers, st.tuples(st.integers(), st.integers()))
toys = st.builds(
    Toy,
    st.builds(Mlp, st.integers()) | pools,
    st.lists(steps, max_size=3).map(tuple),
    st.lists(words, max_size=3),
    st.none() | st.integers(),
    st.booleans(),
    words,
)
TOY = Toy(Pool(), (Step("align", 5, {"projector": 1e-3}), Step("tune")), ["x"])


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@settings(max_examples=40, deadline=None)
@given(toys)
def test_json_round_trip(config: Toy):
    assert from_dict(Toy, json.loads(json.dumps(to_dict(config)))) == config


@settings(max_examples=40, deadline=None)
@given(toys)
def test_overriding_with_the_current_value_changes_nothing(config: Toy):
    for name, value in leaves(config).items():
        assert override(config, {name: as_text(value)}) == config


@settings(max_examples=40, deadline=None)
@given(toys, st.integers())
def test_an_override_changes_its_field_and_no_other(config: Toy, number: int):
    changed = leaves(override(config, {"limit": str(number)}))
    assert changed == {**leaves(config), "limit": number}


def test_nested_fields_are_set_by_dotted_name():
    changed = override(
        TOY,
        {
            "stages.0.steps": "500",
            "stages.1.schedule": "constant",
            "stages.0.lr.encoder": "1e-5",
            "part.kernel": "[3, 1]",
            "part.ratio": "1",
            "on": "true",
            "limit": "7",
            "note": "12",
        },
    )
    assert changed.stages[0] == Step("align", 500, {"projector": 1e-3, "encoder": 1e-5})
    assert changed.stages[1] == Step("tune", schedule="constant")
    assert changed.part == Pool(1.0, (3, 1))
    assert isinstance(changed.part, Pool)
    assert isinstance(changed.part.ratio, float)
    assert (changed.on, changed.limit, changed.note) == (True, 7, "12")
    assert override(changed, {"limit": "none"}).limit is None
    assert TOY.stages[0].steps == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stages.0.stpes", "1", "unknown field 'stages.0.stpes' in recipe; did you mean "
         "'stages.0.steps'?"),
        ("stages.2.steps", "1", "unknown field 'stages.2.steps' in recipe"),
        ("stages.0.lr.a.b", "1", "unknown field 'stages.0.lr.a.b' in recipe"),
        ("part.width", "1", "unknown field 'part.width' in recipe"),
        ("part.kind", "Mlp", "unknown field 'part.kind' in recipe"),
        ("stages.0.steps", "many", "recipe.stages.0.steps: expected int, found 'many'"),
        ("stages.0.steps", "1.5", "recipe.stages.0.steps: expected int, found 1.5"),
        ("stages.0.steps", "true", "recipe.stages.0.steps: expected int, found True"),
        ("stages.0.lr.projector", "fast", "recipe.stages.0.lr.projector: expected float, found"),
        ("stages.0.schedule", "cosin", "recipe.stages.0.schedule: 'cosin' is not one of constant, "
         "cosine; did you mean 'cosine'?"),
        ("part.kernel", "[1, 2, 3]", "recipe.part.kernel: expected tuple[int, int], found"),
        ("on", "1", "recipe.on: expected bool, found 1"),
        ("limit", "soon", "recipe.limit: expected int, found 'soon'"),
        ("names", "[1]", "recipe.names.0: expected str, found 1"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(name: str, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        override(TOY, {name: text})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Toy, {"prt": None}, "unknown field 'prt' in config; did you mean 'part'?"),
        (Step, {"steps": 3}, "config: the field 'name' of Step is missing"),
        (Toy, {"part": {"kind": "toy_pol"}}, "config.part: unknown kind 'toy_pol', expected one "
         "of ['toy_mlp', 'toy_pool']; did you mean 'toy_pool'?"),
        (Toy, {"limit": "3"}, "config.limit: expected int, found '3'"),
        (Toy, {"stages": 3}, "config.stages: expected tuple"),
        (Toy, [], "config: expected Toy, found []"),
        (Mlp, {"kind": "toy_pool", "width": 3}, "config: expected Mlp, found {'kind': 'toy_pool'"),
    ],
)  # fmt: skip
def test_a_wrong_dictionary_is_named(kind: type, value: Any, message: str):
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, value)
    assert str(caught.value).startswith(message)


def test_a_union_keeps_which_member_it_was():
    for part in (Mlp(3), Pool(0.25)):
        assert from_dict(Toy, to_dict(Toy(part))).part == part
    assert from_dict(int | None, None) is None


def test_a_field_called_kind_is_refused_because_it_would_be_lost():
    with pytest.raises(ConfigError, match="cannot be named 'kind'"):
        to_dict(Tagged())


def test_nearest_names_only_what_is_near():
    assert nearest("tabels-qa", ["tables-qa", "charts-qa"]) == "; did you mean 'tables-qa'?"
    assert nearest("zzz", ["tables-qa"]) == ""


def test_a_whole_object_is_replaced_by_json():
    from chiasm.recipes.recipe import find
    from chiasm.unified.config import LFQConfig, VQConfig

    tokenizer = override(find("tokenizer"), {"model.quantizer": '{"kind": "vq", "codes": 8}'})
    assert tokenizer.model.quantizer == VQConfig(codes=8)
    assert override(tokenizer, {"model.quantizer": "lfq"}).model.quantizer == LFQConfig()
    assert override(find("mllm_smol"), {"model.lora": "none"}).model.lora is None
