"""Data sets of a model's own replies, and the recipes that learn from preferences and rewards."""

import json
import sys
import types
from dataclasses import replace

import pytest

from chiasm import cli
from chiasm.core.errors import CheckpointError, ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.data.load import load_samples
from chiasm.recipes.meta_model import Assumed
from chiasm.recipes.planning import plan_of
from chiasm.recipes.recipe import find, with_overrides
from chiasm.recipes.run import run
from chiasm.recipes.sampled_data import Asking, sample_data
from route_toys import make_parts, mllm_recipe, unified_recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the data and a toy run of each route, hardly trained."""
    folder = make_parts(tmp_path_factory.mktemp("parts"))
    for name, recipe in (("mllm", mllm_recipe(folder)), ("unified", unified_recipe(folder))):
        few = tuple(replace(stage, steps=1) for stage in recipe.stages)
        run(replace(recipe, stages=few), folder / name, show=silent)
    return folder


@pytest.fixture(autouse=True)
def rewards(monkeypatch):
    module = types.ModuleType("toy_rewards")
    module.length = lambda sample, reply: float(sum(reply.ids) % 11)
    monkeypatch.setitem(sys.modules, "toy_rewards", module)
    monkeypatch.setenv("CHIASM_ALLOW_CUSTOM", "toy_rewards")


def asking(runs, **changes):
    fields = {
        "run": str(runs / "mllm"), "data": str(runs / "data"), "split": "train",
        "objective": "chat", "n": 3, "rewards": {"toy_rewards:length": 1.0}, "temperature": 1.0,
        "max_tokens": 6, "limit": 10, "seed": 0,
    }  # fmt: skip
    return Asking(**fields | changes)


def test_the_best_and_the_worst_reply_become_a_pair(runs, tmp_path, monkeypatch):
    # Replies of a model that has learnt nothing are all cut off, which would leave none.
    monkeypatch.setattr("chiasm.recipes.sampled_data.WHOLE", ("stop", "length"))
    found = sample_data(asking(runs), tmp_path / "pairs", "preferences", show=silent)
    samples = load_samples(str(tmp_path / "pairs" / "train.jsonl"), "train")
    rows = [json.loads(x) for x in (tmp_path / "pairs" / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert found.sampled == 30
    assert found.best >= found.first
    by_id = {s.id: s for s in load_samples(str(tmp_path / "pairs"), "train")} | {
        s.id: s for s in samples
    }
    for row in rows:
        if row["id"] in by_id and len(set(row["rewards"])) > 1:
            sample = by_id[row["id"]]
            best = row["replies"][row["rewards"].index(max(row["rewards"]))]["text"]
            assert sample.turns[-1].text == best
            assert len(sample.images) == 1
    again = sample_data(asking(runs), tmp_path / "pairs", "sft", least=0.0, show=silent)
    assert again.sampled == 0  # the same replies, written otherwise
    with pytest.raises(CheckpointError, match="sampled otherwise"):
        sample_data(asking(runs, seed=1), tmp_path / "pairs", show=silent)


def test_a_cut_short_file_is_gone_on_with(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.recipes.sampled_data.WHOLE", ("stop", "length"))
    sample_data(asking(runs), tmp_path / "a", "sft", least=0.0, show=silent)
    whole = (tmp_path / "a" / "replies.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "replies.jsonl").write_text("".join(whole[:4]) + whole[4][:20] + "\n")
    found = sample_data(asking(runs), tmp_path / "a", "sft", least=0.0, show=silent)
    assert found.sampled == 6 * 3
    rows = [x for x in (tmp_path / "a" / "replies.jsonl").read_text().splitlines() if x[-1] == "}"]
    assert sorted(rows) == sorted(x.rstrip("\n") for x in whole)
    with pytest.raises(DataError, match="lower --least"):
        sample_data(asking(runs), tmp_path / "a", "sft", least=1e6, show=silent)


def test_drawn_images_become_a_data_set(runs, tmp_path):
    given = asking(runs, run=str(runs / "unified"), objective="text_to_image", limit=2)
    sample_data(given, tmp_path / "drawn", "preferences", show=silent)
    row = json.loads((tmp_path / "drawn" / "train.jsonl").read_text().splitlines()[0])
    assert len(row["images"]) == 2  # the chosen and the rejected one
    assert row["rejected"][0]["content"] == [{"type": "image"}]


def test_the_recipes_go_on_from_a_run(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.recipes.sampled_data.WHOLE", ("stop", "length"))
    sample_data(asking(runs), tmp_path / "pairs", "preferences", show=silent)
    common = {"stages.0.steps": "1", "stages.0.autocast": "none"}
    few = {"stages.0.rollouts.prompts": "1", "stages.0.rollouts.replies": "2"}
    for name, data, start, more in (
        ("dpo_smol", tmp_path / "pairs", "mllm", {}),
        ("grpo_smol", runs / "data", "mllm", few | {"stages.0.rollouts.max_tokens": "4"}),
        ("grpo_draw", runs / "data", "unified", few),
    ):
        settings = common | more | {"init": str(runs / start), "data": str(data)}
        if start == "mllm":
            settings["model.freeze_first_layers"] = "1"
        run(with_overrides(find(name), settings), tmp_path / name, show=silent)
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert "margin" in line or "reward" in line
        assert (tmp_path / name / "model.json").exists()


def test_the_cost_of_rollouts_is_not_guessed():
    with pytest.raises(ConfigError, match="known only by sampling"):
        plan_of(find("grpo_smol"), Assumed())


def test_the_command_says_what_it_wrote(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("chiasm.recipes.sampled_data.WHOLE", ("stop", "length"))
    cli.main(
        ["data", "sample", str(runs / "mllm"), "--data", str(runs / "data"), "--n", "2",
         "--reward", "toy_rewards:length", "--kind", "preferences", "--limit", "3",
         "--max-tokens", "4", "-o", str(tmp_path / "out")]
    )  # fmt: skip
    assert "samples written" in capsys.readouterr().out
