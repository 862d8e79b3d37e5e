"""Our Muon against the mathematics and against torch's."""

import pytest
import torch

from chiasm.train.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    x = orthogonalize(torch.randn(3, *shape))
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_keeps_the_singular_directions():
    torch.manual_seed(0)
    m = torch.randn(1, 6, 6)
    u, _, vt = torch.linalg.svd(m[0])
    inner = u.T @ orthogonalize(m)[0] @ vt.T
    off = inner - torch.diag(inner.diag())
    assert off.abs().max() < 1e-4


def test_matches_torch_muon_up_to_its_bfloat16():
    torch.manual_seed(0)
    start, gradients = torch.randn(16, 24), [torch.randn(16, 24) for _ in range(4)]
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    a = Muon([ours], lr=1e-2)
    b = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    moved, reference = ours.detach() - start, theirs.detach() - start
    assert torch.nn.functional.cosine_similarity(moved.ravel(), reference.ravel(), dim=0) > 0.995
    assert moved.norm() == pytest.approx(reference.norm().item(), rel=0.02)


def test_convolutions_are_flattened():
    weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 3))
    weight.grad = torch.randn(4, 3, 3, 3)
    Muon([weight], lr=1.0).step()
    values = torch.linalg.svdvals(weight.detach().reshape(4, -1))
    assert values.min() / values.max() > 0.5


def test_bfloat16_moves_the_weights_as_fp32_does():
    torch.manual_seed(0)
    start, gradient = torch.randn(24, 40), torch.randn(24, 40)
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        optimizer = Muon([weight], lr=1e-2, dtype=dtype)
        optimizer.step()
        assert weight.dtype == optimizer.state[weight]["momentum"].dtype == torch.float32
        moved.append((weight.detach() - start).ravel())
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.995
    assert moved[1].norm() == pytest.approx(moved[0].norm().item(), rel=0.02)
