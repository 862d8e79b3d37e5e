"""Frozen parameters held in the working dtype change nothing but the time."""

import copy

import pytest
import torch
from torch import nn

from chiasm.nn.norm import GroupNorm, RMSNorm
from chiasm.nn.precision import LoweredWeights, autocast, working_dtype

CPU = torch.device("cpu")


def half_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].requires_grad_(False)
    return model


def test_the_choice_of_a_precision():
    assert working_dtype("bfloat16", CPU) == torch.bfloat16
    assert working_dtype("none", CPU) == torch.float32
    with autocast("none", CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_lowered_products_and_gradients_equal_autocast_own():
    plain = half_frozen()
    lowered = copy.deepcopy(plain)
    x = torch.randn(5, 8)
    held = LoweredWeights(lowered, torch.bfloat16)
    assert lowered[1].weight.dtype == torch.bfloat16
    assert lowered[0].weight.dtype == lowered[2].weight.dtype == torch.float32
    results = []
    for model in (plain, lowered):
        with autocast("bfloat16", CPU):
            out = model(x)
        out.float().square().sum().backward()
        results.append([out, model[0].weight.grad, model[2].weight.grad])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    held.restore()


@pytest.mark.parametrize("norm", [nn.LayerNorm, RMSNorm, lambda d: GroupNorm(2, d)])
def test_a_frozen_norm_takes_activations_of_either_dtype(norm):
    """Behind a trained layer they are in fp32, behind a frozen one in bfloat16."""
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(8, 8), norm(8)).requires_grad_(False)
    model = copy.deepcopy(exact)
    held = LoweredWeights(model, torch.bfloat16)
    weight = torch.randn(5, 8)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(5, 8).to(dtype).requires_grad_()
        with autocast("bfloat16", CPU):
            out = model[1](x)
        (weight * out).sum().backward()
        y = x.detach().float().requires_grad_()
        expected = exact[1](y)
        (weight * expected).sum().backward()
        torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.02)
        torch.testing.assert_close(x.grad.float(), y.grad, atol=0.05, rtol=0.05)
    held.restore()


def test_full_precision_comes_back_bit_for_bit_for_a_while_and_in_the_end():
    model = half_frozen()
    before = copy.deepcopy(model.state_dict())
    held = LoweredWeights(model, torch.bfloat16)
    with held.restored():
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[1].weight.dtype == torch.bfloat16
    held.restore()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nothing_is_held_where_fp32_is_the_working_dtype():
    model = half_frozen()
    pointer = model[1].weight.data_ptr()
    LoweredWeights(model, torch.float32)
    assert model[1].weight.data_ptr() == pointer
    assert model[1].weight.dtype == torch.float32
