"""Both bottlenecks against NumPy and loops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.unified.config import FSQConfig, LFQConfig, ResidualVQConfig, VQConfig
from chiasm.unified.quantizers import FSQ, VQEMA, build_quantizer

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


@settings(max_examples=25, deadline=None)
@given(LEVELS)
def test_fsq_lookup_gives_every_grid_point_once_and_in_order(levels):
    fsq = FSQ(FSQConfig(levels))
    values = fsq.lookup(torch.arange(fsq.codes)).numpy()
    axes = [(np.arange(n) - n // 2) / (n // 2) for n in levels]
    # The first dimension turns fastest, so it is the last of itertools' product.
    grid = np.array([point[::-1] for point in itertools.product(*reversed(axes))])
    np.testing.assert_allclose(values, grid, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(LEVELS)
def test_fsq_reaches_every_code_and_finds_it_again(levels):
    """An input whose squashed value is a grid point gets that point's code, for all codes."""
    fsq = FSQ(FSQConfig(levels))
    codes = torch.arange(fsq.codes)
    n = np.array(levels)
    half, offset = (n - 1) * 1.001 / 2, np.where(n % 2 == 0, 0.5, 0.0)
    wanted = fsq.lookup(codes).double().numpy() * (n // 2)
    squashed = np.clip((wanted + offset) / half, -1 + 1e-9, 1 - 1e-9)
    z = np.arctanh(squashed) - np.arctanh(offset / half)
    out = fsq(torch.from_numpy(z).float()[:, :, None, None])
    assert torch.equal(out.codes[:, 0, 0], codes)
    torch.testing.assert_close(out.values[:, :, 0, 0], fsq.lookup(codes))
    assert out.penalty == 0


@settings(max_examples=25, deadline=None)
@given(LEVELS, st.floats(0.1, 100), st.integers(0, 99))
def test_fsq_codes_stay_in_range_and_name_the_values(levels, scale, seed):
    torch.manual_seed(seed)
    fsq = FSQ(FSQConfig(levels))
    out = fsq(scale * torch.randn(2, len(levels), 5, 3))
    assert out.values.shape == (2, len(levels), 5, 3)
    assert out.codes.shape == (2, 5, 3)
    assert out.codes.min() >= 0
    assert out.codes.max() < fsq.codes
    torch.testing.assert_close(out.values, fsq.lookup(out.codes).movedim(-1, 1))


def test_fsq_gradient_passes_the_rounding_straight_through():
    fsq, n = FSQ(FSQConfig((8, 5))), np.array([8, 5])
    z = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    fsq(z).values.sum().backward()
    half, offset = (n - 1) * 1.001 / 2, np.array([0.5, 0.0])
    shift = np.arctanh(offset / half)
    squashed = np.tanh(z.detach().numpy() + shift[None, :, None, None])
    expected = (1 - squashed**2) * (half / (n // 2))[None, :, None, None]
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-5)


def vq(codes=6, width=3, **changes):
    torch.manual_seed(0)
    return VQEMA(VQConfig(codes, width, **changes))


def test_vq_chooses_the_nearest_by_brute_force():
    model = vq().eval()
    z = torch.randn(2, 3, 4, 5)
    out = model(z)
    for b, i, j in np.ndindex(2, 4, 5):
        distance = [float((z[b, :, i, j] - e).square().sum()) for e in model.embedding]
        assert out.codes[b, i, j] == int(np.argmin(distance))
        torch.testing.assert_close(
            out.values[b, :, i, j], model.embedding[out.codes[b, i, j]], atol=1e-6, rtol=1e-5
        )


def test_vq_gradients_are_straight_through_plus_commitment():
    model = vq(commitment=0.5).eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = model(z)
    weight = torch.randn_like(z)
    ((out.values * weight).sum() + out.penalty).backward()
    nearest = model.lookup(out.codes).movedim(-1, 1)
    torch.testing.assert_close(z.grad, weight + 0.5 * 2 * (z - nearest).detach() / z.numel())
    assert out.penalty.item() == pytest.approx(0.5 * (z - nearest).square().mean().item())


def test_vq_moving_averages_equal_numpy():
    decay, codes, width = 0.9, 6, 3
    model = vq(codes, width, decay=decay, patience=1000).train()
    model.started.fill_(True)
    embedding = model.embedding.double().numpy().copy()
    size, total = np.ones(codes), embedding.copy()
    for _ in range(5):
        z = torch.randn(2, width, 3, 3)
        points = z.double().movedim(1, -1).reshape(-1, width).numpy()
        chosen = ((points[:, None] - embedding[None]) ** 2).sum(-1).argmin(1)
        assert model(z).codes.flatten().tolist() == chosen.tolist()
        for code in range(codes):
            mine = points[chosen == code]
            size[code] = decay * size[code] + (1 - decay) * len(mine)
            total[code] = decay * total[code] + (1 - decay) * mine.sum(0)
        smooth = (size + 1e-5) / (size.sum() + codes * 1e-5) * size.sum()
        embedding = total / smooth[:, None]
        np.testing.assert_allclose(model.embedding.numpy(), embedding, atol=1e-5)
        np.testing.assert_allclose(model.cluster_size.numpy(), size, atol=1e-5)


def test_vq_in_evaluation_changes_no_buffer():
    model = vq().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.randn(2, 3, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_vq_starts_from_the_first_batch():
    model = vq().train()
    points = 100 + torch.randn(1, 3, 4, 4)
    model(points)
    assert bool(model.started)
    assert (model.embedding - 100).abs().max() < 10


def test_vq_revives_dead_codes_near_present_outputs():
    model = vq(4, 3, patience=3).train()
    model.started.fill_(True)
    with torch.no_grad():
        model.embedding[:2] = torch.tensor([[5.0], [-5.0]])
        model.embedding[2:] = 1e3
        model.cluster_sum.copy_(model.embedding)
    far = []
    for _ in range(4):
        sign = torch.randn(1, 1, 4, 4).sign()
        model(5 * sign + 0.1 * torch.randn(1, 3, 4, 4))
        far.append(int((model.embedding.abs().max(1).values > 100).sum()))
    assert far == [2, 2, 0, 0]  # after the third idle batch
    assert int(model.idle.max()) < 3
    used = set()
    for _ in range(3):
        used.update(
            model(
                5 * torch.randn(1, 1, 8, 8).sign().expand(1, 3, 8, 8)
                + 0.5 * torch.randn(1, 3, 8, 8)
            )
            .codes.flatten()
            .tolist()
        )
    assert len(used) > 2


@pytest.mark.parametrize("config", [FSQConfig((3, 4)), VQConfig(12, 2)])
def test_both_come_from_their_configuration(config):
    quantizer = build_quantizer(config)
    assert quantizer.codes == config.codes == 12
    assert quantizer.width == config.width == 2
    assert quantizer.lookup(torch.zeros(3, 4, dtype=torch.long)).shape == (3, 4, 2)


@settings(max_examples=25, deadline=None)
@given(LEVELS)
def test_fsq_features_lie_as_far_apart_as_the_digits(levels):
    fsq = FSQ(FSQConfig(levels))
    features = fsq.features().numpy()
    digits = np.array(list(itertools.product(*(range(n) for n in reversed(levels)))))
    apart = np.abs(digits[:, None] - digits[None]).sum(-1)
    ours = np.abs(features[:, None] - features[None]).sum(-1)
    np.testing.assert_array_equal(ours, apart)


def test_vq_features_are_the_codebook_at_one_scale():
    torch.manual_seed(0)
    vq = VQEMA(VQConfig(codes=40, width=5))
    vq.embedding.mul_(30).add_(7)
    features = vq.features()
    torch.testing.assert_close(features.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(5))
    nearest = torch.cdist(features, features).fill_diagonal_(9e9).argmin(1)
    scaled = vq.embedding / vq.embedding.std(0)
    assert torch.equal(nearest, torch.cdist(scaled, scaled).fill_diagonal_(9e9).argmin(1))


@pytest.mark.parametrize(
    "config", [FSQConfig((8, 8, 8)), VQConfig(512, 16), LFQConfig(9), ResidualVQConfig(512, 16, 2)]
)
def test_autocast_changes_no_code_and_no_codebook(config):
    """The encoder's output is bfloat16 there; what is made of it must not be."""
    torch.manual_seed(0)
    given, gap = build_quantizer(config), build_quantizer(config)
    gap.load_state_dict(given.state_dict())
    for _ in range(3):  # the first makes a codebook of what it is given
        z = torch.randn(4, given.width, 16, 16).bfloat16()
        torch.manual_seed(1)
        plain = given(z.float())
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            lowered = gap(z)
        assert torch.equal(plain.codes, lowered.codes)
        torch.testing.assert_close(lowered.values.float(), plain.values, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(lowered.penalty.float(), plain.penalty, atol=1e-3, rtol=1e-2)
    for name, value in given.state_dict().items():
        torch.testing.assert_close(gap.state_dict()[name], value)
