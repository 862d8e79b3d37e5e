"""Every row of the alias table: what the old name says is what the new one says, with a warning."""

import dataclasses
import json
import warnings
from typing import Any

import pytest

from chiasm.core import aliases
from chiasm.core.config import from_dict, override, tag_of, to_dict
from chiasm.core.errors import ConfigError
from chiasm.mllm.config import MLLMConfig, PadConfig
from chiasm.recipes.cost import bill_of
from chiasm.recipes.recipe import Augment, Recipe
from chiasm.train.stage import Ranks, Stage
from chiasm.unified.config import AutoencoderConfig, StockNetworks, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, TowerOptions

STAGE = Stage("a", 3)
CONFIGS = {
    "stage": STAGE,
    "ranks": Ranks(),
    "recipe": Recipe(MLLMConfig(), (STAGE,)),
    "mllm": MLLMConfig(),
    "unified": UnifiedConfig(),
    "autoencoder": AutoencoderConfig(),
}
VALUES: dict[str, Any] = {
    "batch_tokens": 512,
    "source_weights": {"a": 2.0},
    "loss_reduction": "sample",
    "vision": to_dict(TowerOptions(layer=-1)),
    "image_processing": to_dict(PadConfig()),
    "hf_networks": to_dict(StockNetworks("emu3", {})),
    "image_codes": "codes",
    "perceptual_encoder": "encoder",
    "hidden_size": 384,
    "loggers": ["wandb"],
    "extra_special_tokens": ["<box>"],
    "held_out_captions": ["a red circle"],
}
"""Of fields whose other value cannot be told from their default."""
ROWS = [(tag, old, new) for tag, names in aliases.FIELDS.items() for old, new in names.items()]


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(aliases, "_told", set())


def other(config: Any, path: str) -> Any:
    """Another value than the field has."""
    name = path.rpartition(".")[2]
    for step in path.split("."):
        config = getattr(config, step)
    if name in VALUES:
        return VALUES[name]
    if isinstance(config, bool):
        return not config
    return config + ("x" if isinstance(config, str) else 1 if isinstance(config, int) else 0.125)


def told(old: str, new: str):
    return pytest.warns(FutureWarning, match=f"'{old}' is called '{new}' now")


def put(tree: dict, path: str, value: Any) -> dict:
    first, _, rest = path.partition(".")
    return tree | {first: put(tree[first], rest, value) if rest else value}


@pytest.mark.parametrize(("tag", "old", "new"), ROWS)
def test_saved_json(tag, old, new):
    config, value = CONFIGS[tag], other(CONFIGS[tag], new)
    assert tag_of(type(config)) == tag
    expected = from_dict(type(config), put(to_dict(config), new, value))
    saved = to_dict(config)
    saved.pop(new.partition(".")[0])
    with told(old, new):
        found = from_dict(type(config), saved | {old: value})
    assert found == expected != config
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once a process
        assert from_dict(type(config), saved | {old: value}) == expected


@pytest.mark.parametrize(("tag", "old", "new"), ROWS)
def test_overrides(tag, old, new):
    config, value = CONFIGS[tag], other(CONFIGS[tag], new)
    text = value if isinstance(value, str) else json.dumps(value)
    expected = override(config, {new: text})
    with told(old, new):
        found = override(config, {old: text})
    assert found == expected != config


@pytest.mark.parametrize(("tag", "old", "new"), ROWS)
def test_python(tag, old, new):
    config, value = CONFIGS[tag], other(CONFIGS[tag], new)
    expected = from_dict(type(config), put(to_dict(config), new, value))
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    given.pop(new.partition(".")[0])
    first, *rest = new.split(".")
    changed = getattr(expected, first)
    with told(old, new):
        assert type(config)(**given, **{old: getattr(changed, rest[0]) if rest else changed}) == (
            expected
        )


@pytest.mark.parametrize(("tag", "old", "new"), ROWS)
def test_both_names_are_refused(tag, old, new):
    config = CONFIGS[tag]
    value = other(config, new)
    saved = put(to_dict(config), new, value)
    with pytest.warns(FutureWarning), pytest.raises(ConfigError, match=f"'{old}'.* now; leave out"):
        from_dict(type(config), saved | {old: value})


@pytest.mark.parametrize(("old", "new"), aliases.OBJECTIVES.items())
def test_objectives(old, new):
    expected = Stage("a", 3, objectives=f"{new}+edit+{new}")
    with told(old, new):
        found = from_dict(Stage, to_dict(STAGE) | {"objectives": f"{old}+edit+{old}"})
    assert found == expected == override(STAGE, {"objectives": f"{old}+edit+{old}"})
    assert Stage("a", 3, {}, f"{old}+edit+{old}") == expected
    assert Stage("a", 3, objectives=f"{old}:Mine").objectives == f"{old}:Mine"


@pytest.mark.parametrize(("old", "new"), aliases.GROUPS.items())
def test_groups_of_parameters(old, new):
    expected = Stage("a", 3, {new: 0.5})
    with told(old, new):
        found = from_dict(Stage, to_dict(STAGE) | {"lr": {old: 0.5}})
    assert found == expected == Stage("a", 3, {old: 0.5})
    assert override(STAGE, {"lr": json.dumps({old: 0.5})}) == expected
    assert override(STAGE, {f"lr.{old}": "0.5"}) == expected


@pytest.mark.parametrize(
    ("model", "objective", "unit"),
    [
        (ContrastiveConfig(), "", "images"),
        (AutoencoderConfig(), "", "images"),
        (MLLMConfig(), "words", "images"),
        (MLLMConfig(), "", "tokens"),
        (MLLMConfig(), "converse", "tokens"),
        (UnifiedConfig(), "converse+draw", "tokens"),
    ],
)
def test_the_batch_of_a_stage_is_of_images_or_tokens(model, objective, unit):
    """Saved runs and what is typed: by the model and the objective."""
    recipe = Recipe(model, (dataclasses.replace(STAGE, objectives=objective),))
    saved = to_dict(recipe)
    for name in ("batch_tokens", "batch_images", "objectives"):
        del saved["stages"][0][name]
    saved["stages"][0] |= {"batch": 7, "data": objective}
    with told("batch", f"batch_{unit}"):
        assert from_dict(Recipe, saved).stages[0].batch_size(unit) == 7
    found = override(recipe, {"stages.0.batch": "9"}).stages[0]
    assert found.batch_size(unit) == 9
    with pytest.raises(ConfigError, match=r"counts its batch in .*; set batch_"):
        found.batch_size("tokens" if unit == "images" else "images")


def test_one_warning_tells_all():
    saved = {"kind": "Recipe", "shift": 2, "mirror": True, "keep": 3, "model": "mllm"}
    stage = {"kind": "stage", "name": "a", "steps": 1, "lr": {"adapter": 1e-3}, "clip": 2.0}
    with pytest.warns(FutureWarning) as caught:
        found = from_dict(Recipe, saved | {"stages": [stage]})
    assert len(caught) == 1
    for name in ("Recipe", "shift", "mirror", "keep", "adapter", "clip"):
        assert f"'{name}' is called" in str(caught[0].message)
    assert found.augment == Augment(2, True)
    assert found.stages[0].max_grad_norm == 2.0


@pytest.mark.parametrize(("names"), [aliases.METRICS, aliases.STATE, aliases.RESULTS])
def test_keys_of_records(names):
    with pytest.warns(FutureWarning):
        found = aliases.keys(dict.fromkeys(names, 1) | {"step": 2}, names)
    assert found == dict.fromkeys(names.values(), 1) | {"step": 2}


def test_the_costs_of_an_earlier_run_are_read(tmp_path):
    stage = {"name": "a", "flops": 5.0, "seconds": 2.0}
    (tmp_path / "ledger.json").write_text(json.dumps({"stages": [stage]}))
    with told("ledger.json", "cost.json"):
        assert bill_of(tmp_path).flops == 5.0
    (tmp_path / "cost.json").write_text(json.dumps({"stages": [stage | {"flops": 6.0}]}))
    assert bill_of(tmp_path).flops == 6.0
