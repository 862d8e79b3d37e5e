"""Adapters on any part of a model, in peft's format over published checkpoints."""

from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import chiasm
from chiasm.cli import main
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.sample import Image, Sample, user
from chiasm.hub.load import load
from chiasm.hub.save import save
from chiasm.mllm.adapter import adapters_of, add_adapters
from chiasm.mllm.config import LoRAConfig, LoRAGroup
from chiasm.recipes.fresh import fresh
from chiasm.train.stage import Stage
from route_toys import make_parts, mllm_recipe
from stock_toys import noise, write

EVERYWHERE = LoRAConfig(
    rank=2,
    alpha=8.0,
    targets=("q_proj", "down_proj", "vision.*.v_proj", "projector.*"),
    groups={"vision": LoRAGroup(rank=3), "projector": LoRAGroup(rank=1, alpha=4.0)},
    merged=False,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("adapters"))


def recipe_of(parts, lora, **lr):
    made = mllm_recipe(parts)
    lr = {"lora": 3e-2, **lr}
    stage = Stage("tune", 3, lr, "chat", batch_tokens=1024, autocast="none", feature_cache=1.0)
    model = replace(made.model, lora=lora, freeze_first_layers=0)
    return replace(made, model=model, stages=(stage,))


def logits(model, processor, image=None):
    sample = Sample((user(Image(image or noise(40, 33)), "what colour is it?"),))
    [(encoded, _)] = processor.prompts([sample])
    with torch.no_grad():
        return model.logits(model(pack([[encoded]])))[0]


def theirs_logits(model, folder):
    """Of the same prompt, by transformers."""
    reader = AutoProcessor.from_pretrained(folder, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": "what colour is it?"}]
    text = reader.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = reader(text=text, images=[noise(40, 33)], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0]


@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip"])
def test_peft_reads_adapters_over_a_published_checkpoint(name, parts, tmp_path):
    write(name, tmp_path / "stock")
    run = chiasm.train(recipe_of(parts, EVERYWHERE), init=tmp_path / "stock",
                       out=tmp_path / "run", device="cpu", progress=False)  # fmt: skip
    ours = logits(*load(run, "cpu"))
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock", dtype=torch.float32)
    assert not torch.allclose(theirs_logits(base, tmp_path / "stock"), ours, atol=1e-2)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    torch.testing.assert_close(theirs_logits(adapted, tmp_path / "stock"), ours, atol=1e-4,
                               rtol=1e-4)  # fmt: skip
    ranks = {n.split(".lora_A")[0].split(".")[-1]: p.shape[0]
             for n, p in adapted.named_parameters() if "lora_A" in n}  # fmt: skip
    assert ranks == {"q_proj": 2, "down_proj": 2, "v_proj": 3, "linear_1": 1, "linear_2": 1}
    # The folder of an adapter, whoever wrote it, is a model by itself, and merging changes nothing.
    torch.testing.assert_close(logits(*load(tmp_path / "run" / "adapter", "cpu")), ours, atol=1e-4,
                               rtol=1e-4)  # fmt: skip
    main(["merge-lora", str(tmp_path / "run"), str(tmp_path / "merged"), "--device", "cpu"])
    torch.testing.assert_close(logits(*load(tmp_path / "merged", "cpu")), ours, atol=1e-4,
                               rtol=1e-4)  # fmt: skip


def test_a_projector_trained_whole_goes_with_the_adapters(parts, tmp_path):
    write("llava-clip", tmp_path / "stock")
    lora = LoRAConfig(rank=2, targets=("v_proj",), merged=False)
    run = chiasm.train(recipe_of(parts, lora, projector=1e-2), init=tmp_path / "stock",
                       out=tmp_path / "run", device="cpu", progress=False)  # fmt: skip
    ours = logits(*load(run, "cpu"))
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    torch.testing.assert_close(theirs_logits(adapted, tmp_path / "stock"), ours, atol=1e-4,
                               rtol=1e-4)  # fmt: skip
    save(*load(run, "cpu"), tmp_path / "again")
    torch.testing.assert_close(logits(*load(tmp_path / "again", "cpu")), ours)


@pytest.mark.parametrize("merged", [True, False])
def test_adapters_anywhere_over_parts(merged, parts, tmp_path):
    """Over a text model those of encoder and projector are saved folded in."""
    recipe = recipe_of(parts, replace(EVERYWHERE, merged=merged))
    run = chiasm.train(recipe, out=tmp_path / "run", device="cpu", progress=False)
    model, processor = load(run, "cpu")
    kept = adapters_of(model)
    assert bool(kept) is not merged
    assert not adapters_of(model.vision)
    again = tmp_path / "again"
    save(model, processor, again)
    torch.testing.assert_close(
        logits(*load(again, "cpu")), logits(model, processor), atol=1e-5, rtol=1e-5
    )


def test_groups_hold_every_parameter_once(parts):
    model, _ = fresh(mllm_recipe(parts))
    plain = {id(p) for p in model.parameters()}
    add_adapters(model, EVERYWHERE)
    groups = model.groups()
    held = [id(p) for group in groups.values() for p in dict.fromkeys(group.parameters())]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups["lora"].parameters()} == set(held) - plain


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        (
            LoRAConfig(targets=("vision.*.w_proj",)),
            r"'vision\.\*\.w_proj' is the name of no",
        ),
        (
            LoRAConfig(targets=("c_attn",)),
            "'c_attn' is the name of no matrix; there are language_model",
        ),
        (
            LoRAConfig(groups={"tower": LoRAGroup()}),
            "no part 'tower'; the parts are language_model",
        ),
    ],
)
def test_targets_that_choose_nothing_are_refused(lora, named, parts):
    recipe = mllm_recipe(parts)
    recipe = replace(recipe, model=replace(recipe.model, lora=lora))
    with pytest.raises(ConfigError, match=named):
        fresh(recipe)


def test_an_adapter_without_its_base_names_the_remedy(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/such/base"}')
    with pytest.raises(CheckpointError, match="over '/no/such/base', which is not"):
        load(tmp_path, "cpu")
