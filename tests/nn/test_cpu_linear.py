"""Products with few rows: the same as F.linear, and only where they should be."""

import time

import pytest
import torch
from torch import nn

from chiasm.nn import cpu_linear as products
from chiasm.nn.cpu_linear import (
    SMALLEST,
    FewRows,
    _by_bytes,
    _by_halves,
    _by_whole_numbers,
    _in_bytes,
    _sums_exactly,
    narrow,
    normed,
    product,
    scores,
)


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
    torch.testing.assert_close(alone, found[2:4], atol=0.05, rtol=0)  # bf16's last bit


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
            torch.testing.assert_close(
                multiply(x[row : row + 1]), found[row : row + 1], atol=0.05, rtol=1e-2
            )


@pytest.mark.parametrize("kernel", [_by_bytes, _by_halves], ids=["bytes", "halves"])
@torch.no_grad()
def test_a_row_of_torchs_narrow_kernels_does_not_depend_on_its_company(kernel):
    torch.manual_seed(0)
    multiply, x = kernel(torch.randn(80, 96)), torch.randn(6, 96).bfloat16()
    found = multiply(x)
    for row in range(6):
        assert torch.equal(multiply(x[row : row + 1]), found[row : row + 1])


@pytest.mark.parametrize("signed", [True, False])
@torch.no_grad()
def test_sums_of_bytes_are_exact_or_the_kernel_is_not_offered(signed):
    """Outliers in one row, as last hidden states have them, and a row of zeros."""
    torch.manual_seed(0)
    weight, x = torch.randn(80, 96), torch.randn(6, 96)
    x[2, 5], x[4] = 100.0, 0.0
    multiply = _by_whole_numbers(weight, signed)
    if multiply is None:  # sums saturate here, which oneDNN does without a word
        assert not _sums_exactly(80, 96, signed)
        return
    whole, scale = _in_bytes(weight)
    expected = x.double() @ (whole * scale[:, None]).double().t()
    found = multiply(x)
    assert torch.dist(found.double(), expected) < 1e-4 * expected.norm()
    for row in range(6):
        assert torch.equal(multiply(x[row : row + 1]), found[row : row + 1])


SLOW = 0.02


def slowed(make):
    """A maker whose kernels compute the same and take long."""

    def made(*given):
        multiply = make(*given)

        def act(x):
            time.sleep(SLOW)
            return multiply(x)

        return multiply and act

    return made


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ("fp32", ["_laid_out"]),
        ("fp32", ["_transposed"]),
        ("bf16", ["_laid_out"]),
        ("int8", ["_by_bytes"]),
        ("int4", ["_by_halves", "_by_bytes"]),
    ],
)
@pytest.mark.parametrize("make", [product, scores])
@torch.no_grad()
def test_a_slow_kernel_is_not_taken(make, held, names, monkeypatch, fresh_choices):
    for name in names:
        monkeypatch.setattr(products, name, slowed(getattr(products, name)))
    weight = torch.randn(128, 96)
    multiply, x = make(weight, held), torch.randn(2, 96)
    x = x.to(narrow(held)) if make is product else x
    began = time.perf_counter()
    for _ in range(5):
        found = multiply(x)
    assert time.perf_counter() - began < 5 * SLOW
    assert torch.dist(found.float(), x.float() @ weight.t()) < 0.2 * found.float().norm()


@torch.no_grad()
def test_a_kernel_that_sums_bytes_slowly_is_not_taken(monkeypatch, fresh_choices):
    """As oneDNN's reference loop does for signed bytes on processors with VNNI and no AMX."""
    monkeypatch.setattr(products, "_sums_exactly", lambda *_: True)
    monkeypatch.setattr(products, "_byte_product", slowed(products._byte_product))
    multiply, x = scores(torch.randn(128, 96), "int8"), torch.randn(2, 96)
    began = time.perf_counter()
    for _ in range(5):
        multiply(x)
    assert time.perf_counter() - began < 5 * SLOW


def test_a_norm_and_a_matrix_are_one_product():
    torch.manual_seed(0)
    norm, x = nn.RMSNorm(64, eps=1e-5), torch.randn(3, 64)
    matrix = torch.randn(48, 64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        expected = norm(x) @ matrix.t()
        found = normed(matrix, norm.weight, 1e-5)(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
