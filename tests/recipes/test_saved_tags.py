"""Every configuration is saved under a tag; the names of earlier versions are read for ever."""

import dataclasses
import subprocess
import sys
import typing
import warnings

import pytest

from chiasm.core import aliases
from chiasm.core.aliases import KINDS
from chiasm.core.config import CONFIGS, from_dict, tag_of, to_dict
from chiasm.core.errors import CheckpointError
from chiasm.data.mixture import Ingredient, Mixture
from chiasm.hub.load import LOADERS, load
from chiasm.mllm.config import MLLMConfig, PerceiverConfig, SavedMLLM
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import StockNetworks
from chiasm.vision.config import FusedConfig, TowerConfig, ViTConfig
from saved_runs import RUNS

ENCODER = TowerConfig("a", "siglip", 8, 2, (2,), True, 32, 8, None, 3, (0.5,) * 3, (0.5,) * 3)
EXAMPLES = [
    Recipe(MLLMConfig(), (Stage("a", 1),)),
    Stage("a", 3, {"vision": 1e-3}),
    ENCODER,
    FusedConfig(ENCODER, ENCODER),
    SavedMLLM(MLLMConfig(), ViTConfig()),
    StockNetworks("emu3", {"codebook_size": 8}),
    Mixture((Ingredient("a", 2.0),)),
    Ingredient("b"),
]
"""Of classes with fields that have no default."""


def chiasms() -> dict[str, type]:
    """Tags of chiasm's own, not those of toys in other tests."""
    return {tag: CONFIGS[tag] for tag in CONFIGS if CONFIGS[tag].__module__.startswith("chiasm.")}


def example(kind: type):
    return next((one for one in EXAMPLES if type(one) is kind), None) or kind()


def members(hint) -> set[type]:
    """All dataclasses that a type says, those of their fields included."""
    found = set()
    for one in [hint, *typing.get_args(hint)]:
        if dataclasses.is_dataclass(one):
            found.add(one)
            for field in typing.get_type_hints(one).values():
                found |= members(field)
        elif one is not hint:
            found |= members(one)
    return found


@pytest.mark.parametrize("tag", chiasms())
def test_what_is_saved_under_a_tag_loads(tag):
    config = example(CONFIGS[tag])
    saved = to_dict(config)
    assert saved["kind"] == tag
    assert from_dict(type(config), saved) == config
    assert from_dict(type(config) | None, saved) == config


@pytest.mark.parametrize("name", KINDS)
def test_a_name_of_an_earlier_version_loads(name, monkeypatch):
    monkeypatch.setattr(aliases, "_told", set())
    config = example(CONFIGS[KINDS[name]])
    saved = to_dict(config) | {"kind": name}
    with pytest.warns(FutureWarning, match=f"'{name}' is called '{KINDS[name]}' now"):
        assert from_dict(type(config) | None, saved) == config
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once a process
        assert from_dict(type(config), saved) == config


@pytest.mark.parametrize("root", [Recipe, SavedMLLM, Mixture])
def test_everything_that_is_saved_has_a_tag(root):
    found = members(root)
    assert len(found) > 1
    assert {kind for kind in found if CONFIGS.get(tag_of(kind)) is not kind} == set()


def test_every_whole_model_has_a_loader():
    assert set(LOADERS) <= set(CONFIGS)


def test_renaming_a_class_changes_nothing_that_is_saved():
    whole = MLLMConfig(projector=PerceiverConfig(latents=3))
    saved, names = to_dict(whole), {kind: kind.__name__ for kind in chiasms().values()}
    try:
        for kind in names:
            kind.__name__ = kind.__qualname__ = "Renamed"
        assert to_dict(whole) == saved
        assert from_dict(MLLMConfig, saved) == whole
    finally:
        for kind, name in names.items():
            kind.__name__ = kind.__qualname__ = name


def test_a_model_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "model.json").write_text('{"kind": "unifeid"}')
    with pytest.raises(CheckpointError, match="unknown kind 'unifeid', expected one of contrast"):
        load(tmp_path, "cpu")


def test_old_names_are_told_once_in_a_run_of_the_program(tmp_path):
    """As a user sees it: one line on stderr for a model.json full of old names."""
    code = (
        "from chiasm.recipes.recipe import from_saved; import json, sys;"
        "from_saved(json.load(open(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(RUNS / "mllm_apart" / "recipe.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.count("RenamedWarning: ") == 1
    assert "'Recipe' is called 'recipe' now" in done.stderr
