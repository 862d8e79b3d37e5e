"""A whole duel with tiny recipes, in seconds; the steps that meet a budget; compare as typed."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.progress import silent
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.eval.compare import Bill
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.recipes.compare import names
from chiasm.recipes.cost import bill_of
from chiasm.recipes.duel import DuelSettings, choose_arms, duel
from chiasm.recipes.isoflop_models import Arm, fit_steps, known_arms
from chiasm.recipes.random_lm import LanguageShape, write_language
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, ViTConfig


def test_steps_meet_the_budget_and_keep_their_proportions():
    own, costs = [300, 220, 50, 30], [2e10, 1e10, 1.6e11, 1.6e11]
    for budget in (5e11, 2e12, 1e13, 3e13):
        steps = fit_steps(own, costs, budget)
        spent = sum(n * c for n, c in zip(steps, costs, strict=True))
        assert abs(spent / budget - 1) <= 0.5 * min(costs) / budget + 1e-9
        assert min(steps) >= 1
    scale = 3e13 / sum(n * c for n, c in zip(own, costs, strict=True))
    assert steps[0] == pytest.approx(300 * scale, rel=0.02)


def test_a_budget_below_one_step_of_each_stage_is_told():
    with pytest.raises(ConfigError, match="raise --budget"):
        fit_steps([10, 10], [1e9, 2e9], 2e9)


def test_a_budget_just_above_it_still_works():
    assert fit_steps([1, 1000], [1e9, 1e6], 1.002e9) == (1, 2)


@pytest.fixture
def data(tmp_path):
    """Images that are red or blue, and a question about it."""
    random = np.random.default_rng(0)
    samples = []
    for n in range(24):
        pixels = np.full((16, 16, 3), (255, 0, 0) if n % 2 else (0, 0, 255), np.uint8)
        pixels ^= random.integers(0, 32, pixels.shape, np.uint8)
        colour = "red" if n % 2 else "blue"
        turns = (user(Image(PIL.Image.fromarray(pixels)), "what colour?"), assistant(colour))
        samples.append(Sample(turns, f"s{n}", meta={"caption": f"a {colour} square"}))
    write_messages(samples, tmp_path / "own" / "train.jsonl")
    write_messages(samples[:8], tmp_path / "own" / "test.jsonl")
    return tmp_path / "own"


VIT = ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2)
SMALL = {"warmup_ratio": 0.0, "batch_images": 8, "optimizer": "adamw"}


def tiny_arms() -> dict[str, Arm]:
    rates = {"vision": 1e-3, "text": 1e-3, "temperature": 1e-3}
    encoder = Recipe(
        replace(
            ContrastiveConfig(),
            vision=VIT,
            text_width=16,
            text_layers=1,
            text_heads=2,
            embedding=16,
            vocabulary=300,
        ),
        (Stage("contrastive", 10, rates, **SMALL),),
    )
    tokenizer = Recipe(
        AutoencoderConfig(
            quantizer=FSQConfig((4, 3)),
            image_size=16,
            base_channels=32,
            multipliers=(1, 1, 1),
            decoder_channels=64,
            decoder_blocks=1,
        ),
        (Stage("autoencoder", 10, {"encoder": 1e-3, "decoder": 1e-3}, **SMALL),),
    )
    shape = LanguageShape(vocabulary=300, width=32, layers=1, heads=2, hidden=48)
    mllm = Recipe(
        MLLMConfig(projector=MLPConfig(merge=2), lora=None),
        (
            Stage(
                "chat",
                20,
                {"vision": 1e-3, "projector": 1e-3, "language_model": 1e-3},
                "chat",
                **SMALL | {"batch_images": None, "batch_tokens": 96},
            ),
        ),
    )
    unified = Recipe(
        UnifiedConfig(
            hidden_size=32,
            layers=1,
            heads=2,
            kv_heads=2,
            intermediate_size=48,
            text_vocabulary=300,
            local_attention_init=False,
        ),
        (
            Stage(
                "chat",
                20,
                {"embedding": 1e-3, "transformer": 1e-3},
                "chat",
                **SMALL | {"batch_images": None, "batch_tokens": 96},
            ),
        ),
    )
    return {
        "mllm-scratch": Arm("mllm-scratch", "MLLM", encoder, mllm, shape),
        "unified": Arm("unified", "Unified", tokenizer, unified),
    }


@pytest.mark.parametrize("points", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_whole_duel_in_seconds(data, tmp_path, monkeypatch, points):
    out, budgets = tmp_path / "duel", [4e9 / 2**i for i in range(points)]
    settings = DuelSettings(
        str(data), budget=4e9, points=points, seeds=2, questions=8, max_tokens=2
    )
    outcome = duel(settings, out, tiny_arms(), show=silent)
    assert {(s.arm, s.budget) for s in outcome.stands} == {
        (arm, budget) for arm in ("mllm-scratch", "unified") for budget in budgets
    }
    assert len(outcome.bouts) == points
    for stand in outcome.stands:
        for trial in stand.trials:
            assert abs(trial.off) <= 0.02, trial
            assert len(trial.scores) == 8
            assert trial.peak_memory > 1e7
    record = json.loads((out / "results.json").read_text())
    assert len(record["trials"]) == 4 * points
    assert record["conclusions"]
    assert "<svg" in (out / "report.html").read_text()
    # Runs that are finished are not run again; one that is not, is.
    (out / "unified" / "4e+09" / "seed-1" / "trial.json").unlink()
    trained = []
    import chiasm.recipes.duel as module

    original = module._trial
    monkeypatch.setattr(module, "_trial", lambda *a: trained.append(a[2:4]) or original(*a))
    again = duel(settings, out, tiny_arms(), show=silent)
    assert trained == [(4e9, 1)]
    same = [(s.arm, s.budget, s.mean, [t.flops for t in s.trials]) for s in outcome.stands]
    assert same == [(s.arm, s.budget, s.mean, [t.flops for t in s.trials]) for s in again.stands]
    with pytest.raises(CheckpointError, match="other settings \\(budget\\)"):
        duel(replace(settings, budget=5e9), out, tiny_arms(), show=silent)


def test_settings_that_compare_nothing_are_told(tmp_path):
    with pytest.raises(ConfigError, match="two seeds"):
        duel(DuelSettings("easy-vqa", 1e12, seeds=1), tmp_path, tiny_arms(), show=silent)
    with pytest.raises(ConfigError, match="did you mean 'unified'"):
        choose_arms(["unifid"])
    assert set(known_arms()) == {"mllm", "mllm-scratch", "unified"}


def test_scratch_weights_follow_the_seed_and_survive_a_round_trip(tmp_path):
    from chiasm.mllm.language import load_language

    shape = LanguageShape(vocabulary=300, width=32, layers=1, heads=2, hidden=48)
    texts = ["what colour is it?", "red"]
    models = [
        load_language(str(write_language(tmp_path / name, texts, shape, seed)))[0]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (m.state_dict()["lm_head.weight"] for m in models)
    assert (a == b).all()
    assert (a != c).any()
    _, tokenizer = load_language(str(tmp_path / "a"))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "red"}]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert text == "<s><user>hi<assistant>red</s>"


def test_a_bill_holds_the_parts(tmp_path):
    def ledger(folder, flops, peak):
        folder.mkdir(parents=True)
        stage = {"name": "s", "steps": 1, "seconds": 2.0, "flops": flops, "peak_memory": peak}
        (folder / "cost.json").write_text(json.dumps({"stages": [stage]}))

    ledger(tmp_path / "run", 3e9, 5.0)
    ledger(tmp_path / "elsewhere", 1e9, 9.0)
    recipe = {"model": {"encoder": str(tmp_path / "elsewhere")}}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    assert bill_of(tmp_path / "run") == Bill(4e9, 4.0, 9.0)
    (tmp_path / "run" / "recipe.json").write_text(json.dumps({"model": {"tokenizer": None}}))
    ledger(tmp_path / "run" / "tokenizer", 2e9, 0.0)
    assert bill_of(tmp_path / "run") == Bill(5e9, 4.0, 5.0)
    assert bill_of(tmp_path / "nothing") == Bill()


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    for place in ("a/mllm", "b/mllm", "b/unified"):
        (tmp_path / place).mkdir(parents=True)
    assert names([tmp_path / "a/mllm", tmp_path / "b/unified"]) == ["mllm", "unified"]
    assert names([tmp_path / "a/mllm", tmp_path / "b/mllm"]) == ["a/mllm", "b/mllm"]
