"""Runs saved by earlier versions load for ever, and compute what they computed then."""

import json
import warnings

import pytest
import torch

from chiasm.hub.load import load
from chiasm.recipes.recipe import Recipe, from_saved
from chiasm.train.feature_cache import preprocessing_hash
from saved_runs import RUNS, outputs

EXPECTED = json.loads((RUNS / "expected.json").read_text())
KEPT = sorted(file.parent.name for file in RUNS.glob("*/model.json"))


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("codes", "ids"):
            assert found[key] == value
        else:
            torch.testing.assert_close(
                torch.tensor(found[key]), torch.tensor(value), atol=1e-4, rtol=1e-4
            )


@pytest.fixture
def beside(monkeypatch):
    """Paths in the saved JSON are relative to the folder of all runs."""
    monkeypatch.chdir(RUNS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("unified_fsq", "5b6c84f1ea910451"),
        ("unified_vq", "cded5be0245e0d17"),
        ("unified_lfq", "1d8216f8f168358b"),
        ("unified_residual", "02433e2637171a29"),
    ],
)
def test_codes_precomputed_by_an_earlier_version_still_belong_to_it(name, digest, beside):
    assert load(RUNS / name, "cpu")[1].codec.fingerprint.startswith(digest)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("encoder", "4c08160998ea28c176ceafb275ac30f7"),
        ("mllm_plain", "cc520d7984176e5b4b78701a12d10d20"),
    ],
)
def test_features_cached_by_an_earlier_version_too(name, digest, beside):
    assert preprocessing_hash(load(RUNS / name, "cpu")[0].vision) == digest


def test_every_kind_of_run_was_kept():
    assert {"encoder", "tokenizer", "mllm_merged", "mllm_apart", "mllm_plain"} <= set(KEPT)
    assert {f"unified_{n}" for n in ("fsq", "vq", "lfq", "residual", "masked")} <= set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_a_run_of_an_earlier_version_computes_what_it_did(name, beside):
    same(outputs(RUNS / name), EXPECTED[name])


@pytest.mark.parametrize("name", [n for n in EXPECTED if n.startswith("tokenizer_")])
def test_the_image_tokenizer_in_a_unified_model_too(name, beside):
    kind = name.removeprefix("tokenizer_")
    same(outputs(RUNS / f"unified_{kind}" / "image_tokenizer"), EXPECTED[name])


@pytest.mark.parametrize("name", KEPT)
def test_the_recipe_of_an_earlier_version_is_read(name):
    recipe = from_saved(json.loads((RUNS / name / "recipe.json").read_text()))
    assert isinstance(recipe, Recipe)
    assert recipe.stages[0].steps == 3
