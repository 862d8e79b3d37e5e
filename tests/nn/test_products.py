"""Products with few rows: the same as F.linear, and only where they should be."""

import pytest
import torch
from torch import nn

from chiasm.nn.products import SMALLEST, FewRows, narrow, normed, product, scores


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 300), nn.Tanh(), nn.Linear(300, 256, bias=False))


@pytest.mark.parametrize("shape", [(1,), (2,), (10,), (3, 1), (4, 7), (170,)])
def test_products_equal_the_plain_ones(model, shape):
    x = torch.randn(*shape, 256)
    with torch.no_grad():
        expected = model(x)
        with FewRows(model):
            assert "forward" in model[0].__dict__
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
            turned = torch.randn(256, 5).t()
            got = model(turned)
        torch.testing.assert_close(got, model(turned), atol=1e-5, rtol=1e-5)
    assert "forward" not in model[0].__dict__


def test_changed_weights_are_laid_out_anew(model):
    quick, x = FewRows(model), torch.randn(4, 256)
    for change in (lambda w: w.mul_(2), lambda w: w.add_(0.1)):
        with torch.no_grad(), quick:
            model(x)
            change(model[0].weight)
            got = model(x)
        with torch.no_grad():
            torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
    model[0].weight = nn.Parameter(torch.zeros(300, 256))
    with torch.no_grad(), quick:
        got = model(x)
    torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)


def test_gradients_and_other_types_take_the_plain_way(model):
    x = torch.randn(4, 256)
    with FewRows(model):
        model(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
    assert model[0].weight.grad is not None
    small = nn.Linear(8, 8)
    assert small.weight.numel() < SMALLEST
    with FewRows(small):
        assert "forward" not in small.__dict__


def test_the_plain_way_is_restored_after_an_error(model):
    with pytest.raises(RuntimeError), FewRows(model):
        model(torch.randn(4, 7))
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize(("held", "error"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.2)])
@pytest.mark.parametrize("shape", [(48, 64), (80, 96), (10, 64), (32, 24), (7, 5)])
def test_narrow_products_are_near_whatever_the_shape(held, error, shape):
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(6, shape[1])
    with torch.no_grad():
        multiply, expected = product(weight, held), x @ weight.t()
        found = multiply(x.to(narrow(held)))
        assert found.dtype == narrow(held)
        assert torch.dist(found.float(), expected) < error * expected.norm()
        alone = multiply(x[2:4].to(narrow(held)))
    own = shape[0] % 16 == 0 and shape[1] % 32 == 0  # torch's own kernels, not oneDNN's
    torch.testing.assert_close(alone, found[2:4], atol=0 if own else 0.05, rtol=0)


@pytest.mark.parametrize(
    ("held", "error"), [("fp32", 1e-6), ("bf16", 0.01), ("int8", 0.01), ("int4", 0.01)]
)
def test_scores_are_near_and_a_rows_own(held, error):
    """Outliers in one row, as last hidden states have them, and a row of zeros."""
    torch.manual_seed(0)
    weight, x = torch.randn(80, 96), torch.randn(6, 96)
    x[2, 5], x[4] = 100.0, 0.0
    with torch.no_grad():
        multiply, expected = scores(weight, held), x @ weight.t()
        found = multiply(x)
        assert found.dtype == torch.float32
        for row in range(6):
            assert torch.dist(found[row], expected[row]) <= error * expected[row].norm()
            if held in ("int8", "int4"):
                assert torch.equal(multiply(x[row : row + 1]), found[row : row + 1])


def test_a_norm_and_a_matrix_are_one_product():
    torch.manual_seed(0)
    norm, x = nn.RMSNorm(64, eps=1e-5), torch.randn(3, 64)
    matrix = torch.randn(48, 64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        expected = norm(x) @ matrix.t()
        found = normed(matrix, norm.weight, 1e-5)(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
