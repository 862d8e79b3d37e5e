"""Norms of models from transformers computed as ours: the same numbers, fewer casts."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from chiasm.nn.fuse_norms import fuse_norms
from chiasm.nn.norm import RMSNorm

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def language(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2)
    return model


def ours_in(model):
    return sum(isinstance(m, RMSNorm) for m in model.modules())


@pytest.mark.parametrize(("kind", "norms"), [("llama", 5), ("qwen3", 9), ("gemma2", 0)])
def test_losses_and_gradients_stay(kind, norms):
    """Gemma's add 1 to the weight, so they are not ours."""
    theirs = language(kind)
    ours = copy.deepcopy(theirs)
    names = list(ours.state_dict())
    fuse_norms(ours, ours.model.layers)
    assert ours_in(ours) == norms
    assert list(ours.state_dict()) == names
    ids = torch.arange(12)[None]
    losses = [model(input_ids=ids, labels=ids).loss for model in (theirs, ours)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("kind", "lowered"), [("llama", True), ("gemma2", False)])
def test_what_only_matrices_read_is_cast_once(kind, lowered):
    """Gemma 2 has norms besides that give to the residual stream, so its blocks are left alone."""
    model = language(kind)
    fuse_norms(model, model.model.layers)
    given = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *x: given.append(x[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(12)[None])
    assert given == [torch.bfloat16 if lowered else torch.float32] * 2
    given.clear()
    model(input_ids=torch.arange(12)[None])
    assert given == [torch.float32] * 2


def test_a_tower_is_the_same_tower():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "siglip_vision_model", num_hidden_layers=2, image_size=8, patch_size=4, **size
    )
    theirs = AutoModel.from_config(config)
    ours = copy.deepcopy(theirs)
    fuse_norms(ours, ours.encoder.layers)
    pixels = torch.randn(2, 3, 8, 8)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            a, b = (model(pixels).last_hidden_state for model in (theirs, ours))
        assert torch.equal(a, b)
