"""Adapters of every kind: merging is exact, saving loses nothing, peft reads what is saved."""

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from chiasm import cli
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm import adapter
from chiasm.mllm.adapter import adapters_of, merge_adapters, parts_of
from chiasm.mllm.config import LoRAConfig
from chiasm.recipes.jobs.mllm import _check_adapters
from chiasm.train import checkpoint
from chiasm.train.optim import make_optimizer, set_trained
from chiasm.train.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft sets GPT-2's Conv1D right
PLAIN = LoRAConfig(rank=3, alpha=6.0)
KINDS = {
    "lora": PLAIN,
    "dora": replace(PLAIN, dora=True),
    "rslora": replace(PLAIN, rslora=True),
    "both": replace(PLAIN, dora=True, rslora=True),
}
every_kind = pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)


def trained(toy, lora, family="llama"):
    """A model whose adapters are far from where they start, and a batch."""
    if family == "gpt2":
        lora = replace(lora, targets=("c_attn", "c_fc"))
    model, processor = toy.build(family, lora=lora)
    with torch.no_grad():
        for layer in adapters_of(model.language):
            for part in parts_of(layer):
                for parameter in part.parameters():
                    parameter += torch.randn_like(parameter) * 0.1
    return model, processor, pack([[processor.encode(s) for s in toy.samples()]])


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_logits_equal_unmerged_ones(toy, lora, family):
    model, _, batch = trained(toy, lora, family)
    plain, _ = toy.build(family)
    before = model.logits(model(batch))
    assert (before - plain.logits(plain(batch))).abs().max() > 1e-2
    merge_adapters(model.language)
    assert not adapters_of(model.language)
    assert not [n for n, _ in model.named_parameters() if "lora" in n]
    torch.testing.assert_close(model.logits(model(batch)), before, atol=3e-5, rtol=1e-5)


@torch.no_grad()
def test_an_adapted_matrix_is_the_formula(toy):
    """W + s·B·A with s = alpha / rank or alpha / sqrt(rank); DoRA scales its rows to m."""
    for lora in KINDS.values():
        model, _, _ = trained(toy, lora)
        layer = adapters_of(model.language)[0]
        W = layer.base_layer.weight.double()
        B, A = (p["default"].weight.double() for p in (layer.lora_B, layer.lora_A))
        expected = W + lora.alpha / lora.rank ** (0.5 if lora.rslora else 1.0) * B @ A
        if lora.dora:
            m = layer.lora_magnitude_vector["default"].weight.double()
            expected = m[:, None] * expected / expected.norm(dim=1, keepdim=True)
        x = torch.randn(5, W.shape[1])
        torch.testing.assert_close(
            layer(x), (x.double() @ expected.T).float(), atol=1e-5, rtol=1e-4
        )


@every_kind
def test_a_stage_trains_the_whole_adapter_and_nothing_else(toy, lora):
    model, _, batch = trained(toy, lora)
    set_trained(model, Stage("s", 1, lr={"lora": 1.0}))
    model.loss(batch).sum.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert any("magnitude" in name for name in moved) == lora.dora
    owned = [id(p) for part in model.groups().values() for p in part.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


@torch.no_grad()
@every_kind
def test_adapters_and_projector_are_checkpointed_together(toy, lora, tmp_path):
    model, _, batch = trained(toy, lora)
    names = ("lora", "projector")
    checkpoint.save(tmp_path / "step-1", {"model": checkpoint.state_of(model, names)}, {})
    again, _ = toy.build(lora=lora)
    for parameter in again.projector.parameters():
        parameter.add_(1)
    tensors = checkpoint.read_tensors(tmp_path / "step-1" / "model.safetensors")
    checkpoint.load_state(again, tensors, tmp_path)
    assert torch.equal(again(batch), model(batch))


@torch.no_grad()
@every_kind
def test_kept_apart_they_are_loaded_again_and_merged_by_a_command(toy, lora, tmp_path, capsys):
    lora = replace(lora, merged=False)
    model, processor, batch = trained(toy, lora)
    before = model.logits(model(batch))
    hub.save(tmp_path / "run", model, processor, toy.config(lora=lora))
    assert adapters_of(model.language)
    assert not (tmp_path / "run" / "language").exists()
    again, other = load(tmp_path / "run")
    back = pack([[other.encode(s) for s in toy.samples()]])
    assert torch.equal(again.logits(again(back)), before)
    cli.main(["merge-lora", str(tmp_path / "run"), str(tmp_path / "merged")])
    merged, _ = load(tmp_path / "merged")
    assert not adapters_of(merged.language)
    torch.testing.assert_close(merged.logits(merged(back)), before, atol=3e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="merged already"):
        hub.merge(tmp_path / "merged", tmp_path / "twice")
    with pytest.raises(CheckpointError, match="holds a model already"):
        hub.merge(tmp_path / "run", tmp_path / "merged")


@torch.no_grad()
@every_kind
def test_peft_itself_reads_adapters_kept_apart(toy, lora, tmp_path):
    import peft

    lora = replace(lora, merged=False)
    model, processor, _ = trained(toy, lora)
    hub.save(tmp_path, model, processor, toy.config(lora=lora))
    stock = AutoModelForCausalLM.from_pretrained(toy.folders["llama"])
    stock = peft.PeftModel.from_pretrained(stock, str(tmp_path / "adapter")).eval()
    text = pack([[processor.encode(toy.samples()[1])]])
    expected = stock(text.input_ids).logits
    torch.testing.assert_close(model.logits(model(text)), expected, atol=1e-5, rtol=1e-4)


def test_adapters_of_another_shape_are_refused(toy, tmp_path):
    lora = replace(PLAIN, merged=False)
    model, processor, _ = trained(toy, lora)
    hub.save(tmp_path, model, processor, toy.config(lora=lora))
    other, _ = toy.build(lora=replace(lora, rank=2))
    with pytest.raises(CheckpointError, match="does not fit the model's adapters"):
        adapter.load_adapters(tmp_path / "adapter", other, adapter.OVER_LANGUAGE)
    with pytest.raises(CheckpointError, match="no such file"):
        adapter.load_adapters(tmp_path / "nothing", other, adapter.OVER_LANGUAGE)


@pytest.mark.parametrize("lora", [PLAIN, KINDS["dora"]], ids=["lora", "dora"])
def test_cost_is_what_torch_counts(toy, lora):
    model, processor, _ = trained(toy, lora)
    encoded = processor.encode(toy.samples()[0])
    batch = pack([[replace(encoded, labels=torch.full((len(encoded),), 5).numpy())]])
    set_trained(model, Stage("s", 1, lr={"lora": 1.0, "projector": 1.0}))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_four_bits_without_a_gpu_are_refused(toy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"lora\.quantised: 4-bit training needs a CUDA GPU"):
        toy.build(lora=LoRAConfig(quantised=True))


def test_a_language_model_that_is_trained_is_not_left_out_of_the_run(toy):
    stages = (Stage("s", 1, lr={"language_model": 1.0}),)
    context = SimpleNamespace(recipe=SimpleNamespace(stages=stages))
    config = toy.config(lora=replace(PLAIN, merged=False))
    with pytest.raises(ConfigError, match="stage 's' trains the language model itself"):
        _check_adapters(context, config)
    _check_adapters(context, toy.config(lora=PLAIN))


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="no bitsandbytes here")
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_over_four_bits_train_and_are_the_same_function_when_loaded(
    toy, dora, tmp_path, monkeypatch
):
    """bitsandbytes computes on a CPU too, if slowly; in fp32 nothing is rounded away."""
    settings = adapter.quantisation()
    settings.bnb_4bit_compute_dtype = torch.float32
    monkeypatch.setattr(hub, "quantisation", lambda: settings)
    monkeypatch.setattr(hub, "require_gpu", lambda: None)
    lora = LoRAConfig(rank=2, quantised=True, dora=dora)
    model, processor = toy.build(lora=lora)
    batch = pack([[processor.encode(s) for s in toy.samples()]])
    stage = Stage("s", 1, lr={"lora": 1e-2, "projector": 1e-2})
    set_trained(model, stage)
    optimizer = make_optimizer(model, stage)
    losses = []
    for _ in range(15):
        loss = model.loss(batch)
        losses.append(loss.sum.item())
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    hub.save(tmp_path / "run", model, processor, toy.config(lora=lora))
    again, _ = load(tmp_path / "run")
    hub.merge(tmp_path / "run", tmp_path / "merged")
    merged, _ = load(tmp_path / "merged")
    with torch.no_grad():
        before = model.logits(model(batch))
        torch.testing.assert_close(again.logits(again(batch)), before, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(merged.logits(merged(batch)), before, atol=5e-5, rtol=1e-4)
