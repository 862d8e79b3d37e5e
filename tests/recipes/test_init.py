"""Training that begins with a trained or published model (--init)."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import chiasm
from chiasm.cli import main
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.sample import Image, Sample, user
from chiasm.hub.load import load
from chiasm.mllm.config import LinearConfig, LoRAConfig, MLPConfig
from chiasm.recipes.recipe import find, with_overrides
from chiasm.train.stage import Stage
from route_toys import make_parts, mllm_recipe, unified_recipe
from stock_toys import noise, write

RATES = {"mllm": {"projector": 1e-3, "language_model": 1e-3},
         "unified": {"embedding": 1e-3, "transformer": 1e-3}}  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Parts, and a run of each route trained from them: mllm/ and unified/."""
    folder = make_parts(tmp_path_factory.mktemp("init"))
    for name, recipe in (("mllm", mllm_recipe(folder)), ("unified", unified_recipe(folder))):
        chiasm.train(recipe, out=folder / name, device="cpu", progress=False,
                     **{"stages.1.evaluate_every": 4})  # fmt: skip
    return folder


def recipe_of(route, parts, **stage):
    """Of a model that is nothing like the one that training begins with."""
    made = (mllm_recipe if route == "mllm" else unified_recipe)(parts)
    common = {
        "steps": 4,
        "batch_tokens": 128,
        "autocast": "none",
        "log_every": 1,
        "feature_cache": 0.0,
    }
    settings = {**common, **stage}
    stages = (Stage("more", lr=RATES[route], objectives="chat", **settings),)
    if route == "mllm":
        model = replace(
            made.model, encoder="no/such", language_model="no/such", projector=LinearConfig()
        )
    else:
        model = replace(
            made.model, hidden_size=32, layers=1, text_vocabulary=280, tokenizer="no/such"
        )
    return replace(made, model=model, stages=stages)


def lines(run):
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def evaluations(run):
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("eval/") and "sec" not in k}
        for line in lines(run)
        if "eval/loss" in line
    }


def weights(folder):
    return {
        f"{file.parent.relative_to(folder)}/{name}": value
        for file in sorted(folder.glob("**/*.safetensors"))
        if "checkpoints" not in file.parts
        for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("route", ["mllm", "unified"])
def test_before_the_first_step_the_score_is_the_models(route, parts, tmp_path):
    recipe = recipe_of(route, parts, evaluate_every=4)
    if route == "unified":  # the loss of the source's stage: of the same views, packed alike
        stage = replace(recipe.stages[0], objectives="chat+text_to_image", batch_tokens=256)
        recipe = replace(recipe, stages=(stage,))
    run = chiasm.train(
        recipe, init=parts / route, out=tmp_path / "run", device="cpu", progress=False
    )
    before = evaluations(parts / route)
    after = evaluations(run.folder)
    assert after[0] == before[max(before)]
    assert {"eval/loss", "eval/accuracy"} <= after[0].keys()
    assert after[4] != after[0]


@pytest.mark.parametrize("route", ["mllm", "unified"])
def test_resumed_bit_for_bit(route, parts, tmp_path):
    recipe = recipe_of(route, parts, save_every=2)
    if route == "mllm":
        recipe = replace(recipe, model=replace(recipe.model, lora=LoRAConfig(rank=2)))
        stage = replace(recipe.stages[0], lr={"projector": 1e-3, "lora": 1e-3})
        recipe = replace(recipe, stages=(stage,))
    whole = chiasm.train(
        recipe, init=parts / route, out=tmp_path / "whole", device="cpu", progress=False
    )

    class Stop(chiasm.Callback):
        def on_step(self, step, metrics):
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chiasm.train(recipe, init=parts / route, out=tmp_path / "cut", device="cpu",
                     callbacks=[Stop()], progress=False)  # fmt: skip
    assert (tmp_path / "cut" / "checkpoints" / "step-2" / "COMMIT").exists()
    chiasm.train(recipe, out=tmp_path / "cut", device="cpu", resume="yes", progress=False)
    one, two = weights(whole.folder), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_model_is_the_inits_and_the_training_the_recipes(parts, tmp_path, capsys):
    args = ["train", str(parts / "mllm" / "recipe.json"), "--out", str(tmp_path / "run")]
    main([*args, "--init", str(parts / "mllm"), "--stages.0.steps", "0", "--stages.1.steps", "0",
          "--model.frozen-layers", "2", "--device", "cpu"])  # fmt: skip
    assert f"{parts / 'mllm'}: kept encoder, projector, language model" in capsys.readouterr().err
    one, two = weights(parts / "mllm"), weights(tmp_path / "run")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["init"] == str(parts / "mllm")
    assert saved["init_overrides"] == ["freeze_first_layers"]


def prompt_logits(model, processor):
    sample = Sample((user(Image(noise(40, 33)), "what colour is it?"),))
    [(encoded, _)] = processor.prompts([sample])
    with torch.no_grad():
        return encoded.input_ids.tolist(), model.logits(model(pack([[encoded]])))


@pytest.mark.parametrize("name", ["llava-clip", "llava-tied", "next-siglip", "paligemma"])
def test_a_published_folder_with_lora(name, parts, tmp_path):
    """Without a step it answers as it did; adapters change nothing before they are trained."""
    write(name, tmp_path / "stock")
    recipe = recipe_of("mllm", parts)
    lora = replace(recipe.model, lora=LoRAConfig(rank=2), freeze_first_layers=0)
    stage = replace(recipe.stages[0], lr={"lora": 1e-2}, steps=0, batch_tokens=1024)
    recipe = replace(recipe, model=lora, stages=(stage,))
    still = chiasm.train(recipe, init=tmp_path / "stock", out=tmp_path / "still", device="cpu",
                         progress=False)  # fmt: skip
    there = prompt_logits(*load(tmp_path / "stock", "cpu"))
    here = prompt_logits(*load(still, "cpu"))
    assert here[0] == there[0]
    torch.testing.assert_close(here[1], there[1], atol=1e-5, rtol=1e-5)
    moved = chiasm.train(recipe, init=tmp_path / "stock", out=tmp_path / "moved", device="cpu",
                         progress=False, **{"stages.0.steps": 2})  # fmt: skip
    assert not torch.equal(prompt_logits(*load(moved, "cpu"))[1], there[1])
    assert lines(moved.folder)[0]["loss"] > 0


def test_overrides_say_what_is_fresh(parts, tmp_path, capsys):
    recipe = recipe_of("mllm", parts, steps=0)
    overrides = {
        "model.projector": '{"kind": "mlp", "merge": 2}',
        "model.extra_special_tokens": '["<spot>"]',
    }
    run = chiasm.train(recipe, init=parts / "mllm", out=tmp_path / "run", device="cpu",
                       progress=False, **overrides)  # fmt: skip
    said = capsys.readouterr().err
    assert "kept encoder, language model, tokenizer" in said
    assert "set anew: model.projector, model.extra_special_tokens; fresh: projector" in said
    vlm = run.load("cpu")
    assert vlm.model.projector.config == MLPConfig(merge=2)
    assert "<spot>" in vlm.processor.template.tokenizer.get_vocab()
    before = load(parts / "mllm", "cpu")[0].state_dict()
    after = vlm.model.state_dict()
    name = "language.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(before[name], after[name])


def test_another_language_model_leaves_the_encoder(parts, tmp_path, capsys):
    recipe = recipe_of("mllm", parts, steps=0)
    overrides = {"model.language_model": str(parts / "language"), "model.chat_template": "chatml"}
    recipe = with_overrides(replace(recipe, init=str(parts / "mllm")), overrides)
    recipe = replace(recipe, model=replace(recipe.model, language_model=str(parts / "language")))
    run = chiasm.train(recipe, out=tmp_path / "run", device="cpu", progress=False,
                       **{"model.system": "Be brief."})  # fmt: skip
    assert "model.system" in capsys.readouterr().err
    one, two = weights(parts / "mllm"), weights(run.folder)
    vision = [name for name in one if "vision" in name]
    assert vision
    assert all(torch.equal(one[name], two[name]) for name in vision)


def test_what_cannot_be_taken_over_is_refused(parts, tmp_path):
    recipe = recipe_of("unified", parts)
    train = lambda **more: chiasm.train(  # noqa: E731
        recipe, out=tmp_path / "run", device="cpu", progress=False, **more
    )
    with pytest.raises(ConfigError, match=r"model\.hidden_size: the weights of .* another shape"):
        train(init=parts / "unified", **{"model.hidden_size": 64})
    with pytest.raises(CheckpointError, match=r"holds a MLLM, but --init needs .* Unified"):
        train(init=parts / "mllm")
    with pytest.raises(CheckpointError, match="no such folder"):
        train(init=parts / "mlllm")


@pytest.mark.parametrize("part", ["encoder", "tokenizer"])
def test_parts_begin_with_trained_ones_too(part, parts, tmp_path):
    recipe = find(part)
    stage = replace(recipe.stages[0], steps=0, evaluate_every=1)
    recipe = replace(recipe, data=str(parts / "data"), stages=(stage,))
    run = chiasm.train(recipe, init=parts / part, out=tmp_path / part, device="cpu",
                       progress=False)  # fmt: skip
    one, two = weights(parts / part), weights(run.folder)
    assert one.keys() == two.keys()
    for name, value in load_file(parts / part / "model.safetensors").items():
        assert torch.equal(value, load_file(run.folder / "model.safetensors")[name]), name
    [found] = [line for line in lines(run.folder) if any(k.startswith("eval/") for k in line)]
    assert found["step"] == 0
