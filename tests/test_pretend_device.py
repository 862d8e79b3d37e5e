"""The pretend device does what the tests that rely on it believe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chiasm.core.device import resolve
from pretend_device import syncs


def test_results_are_the_cpus(pretend):
    layer, x = torch.nn.Linear(8, 3), torch.randn(4, 8)
    expected = layer(x).detach()
    layer.to(pretend)
    assert torch.equal(layer(x.to(pretend)).cpu(), expected)
    assert resolve("pretend") == pretend


def test_a_cpu_tensor_cannot_meet_one_of_the_device(pretend):
    with pytest.raises(RuntimeError, match="meet"):
        torch.nn.Linear(8, 3).to(pretend)(torch.randn(4, 8))
    with pytest.raises((RuntimeError, TypeError)):
        np.asarray(torch.ones(3, device=pretend).numpy())


def test_training_steps_are_the_cpus(pretend):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 3), torch.randn(4, 8)
    twin = torch.nn.Linear(8, 3)
    twin.load_state_dict(layer.state_dict())
    twin.to(pretend)
    for module, data in ((layer, x), (twin, x.to(pretend))):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast(data.device.type, torch.bfloat16):
                module(data).square().mean().backward()
            optimizer.step()
    assert torch.equal(layer.weight, twin.weight.cpu())


def test_exchanged_data_is_what_is_computed_with(pretend):
    layer = torch.nn.Linear(2, 2, bias=False).to(pretend)
    full = layer.weight.data
    layer.weight.data = full.to(torch.bfloat16) * 0 + 2
    assert layer.weight.dtype == torch.bfloat16
    assert layer(torch.ones(1, 2, dtype=torch.bfloat16, device=pretend)).tolist() == [[4.0, 4.0]]
    layer.weight.data = full
    assert torch.equal(layer.weight.cpu(), full.cpu())
    assert layer.weight.dtype == torch.float32


def test_what_waits_is_recorded(pretend):
    x = torch.arange(4.0).to(pretend)
    with syncs() as waited:
        y = x * 2 + 1
        y[:2].sum()
    assert waited == []
    with syncs() as waited:
        y.sum().item()
        bool(y[0] > 1)
        y.tolist()
        y.cpu()
        y[y > 3]
        torch.nonzero(y)
        torch.ones(3).to(pretend)
        torch.ones(3).to(pretend, non_blocking=True)
    assert len(waited) == 7, waited
