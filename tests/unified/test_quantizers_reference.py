"""The quantizers against vector-quantize-pytorch, and what only LFQ and residual VQ have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.unified.config import FSQConfig, LFQConfig, ResidualVQConfig, VQConfig
from chiasm.unified.quantizers import FSQ, LFQ, VQEMA, ResidualVQ


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("levels", [(8, 5, 5), (8, 8, 8), (3, 4), (7, 5, 5, 5)])
def test_fsq_equals_the_reference(reference, levels):
    torch.manual_seed(0)
    z = 2 * torch.randn(2, len(levels), 6, 5)
    values, codes = reference.FSQ(levels=list(levels))(z)
    ours = FSQ(FSQConfig(levels))(z)
    assert torch.equal(ours.codes, codes.long())
    torch.testing.assert_close(ours.values, values)


@pytest.mark.parametrize("diversity", [0.0, 1.0, 2.5])
def test_lfq_equals_the_reference(reference, diversity):
    torch.manual_seed(0)
    theirs = reference.LFQ(
        dim=5, entropy_loss_weight=0.3, diversity_gamma=diversity, commitment_loss_weight=0.25
    ).train()
    ours = LFQ(LFQConfig(5, 0.3, diversity, 0.25, sharpness=0.7)).train()
    a = torch.randn(3, 5, 4, 6, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    weight = torch.randn_like(a)
    found, expected = ours(a), theirs(b, inv_temperature=0.7)
    # Their first channel is the highest bit, ours the lowest.
    bits = (expected.indices[..., None] >> torch.arange(4, -1, -1)) & 1
    assert torch.equal(found.codes, (bits * 2 ** torch.arange(5)).sum(-1))
    torch.testing.assert_close(found.values, expected.quantized)
    torch.testing.assert_close(found.penalty, expected.entropy_aux_loss, atol=1e-4, rtol=1e-4)
    ((found.values * weight).sum() + found.penalty).backward()
    ((expected.quantized * weight).sum() + expected.entropy_aux_loss).backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_vq_chooses_and_follows_as_the_reference(reference):
    torch.manual_seed(0)
    theirs = reference.VectorQuantize(
        dim=4,
        codebook_size=10,
        decay=0.9,
        commitment_weight=0.5,
        eps=1e-5,
        accept_image_fmap=True,
        rotation_trick=False,
    ).train()
    ours = VQEMA(VQConfig(10, 4, decay=0.9, commitment=0.5, patience=1000)).train()
    ours.started.fill_(True)
    book = theirs._codebook
    ours.embedding.copy_(book.embed[0])
    ours.cluster_sum.copy_(book.embed_avg[0])
    ours.cluster_size.copy_(book.cluster_size[0])
    for _ in range(4):
        z = torch.randn(2, 4, 5, 3)
        values, codes, loss = theirs(z)
        found = ours(z)
        assert torch.equal(found.codes, codes)
        torch.testing.assert_close(found.values, values)
        torch.testing.assert_close(found.penalty, loss.squeeze())
        torch.testing.assert_close(ours.embedding, book.embed[0], atol=1e-4, rtol=1e-4)


def residual(depth, **changes):
    torch.manual_seed(0)
    made = ResidualVQ(ResidualVQConfig(12, 4, depth, **changes))
    made.started.fill_(True)
    return made


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_residual_vq_equals_the_reference(reference, depth):
    ours = residual(depth).eval()
    theirs = reference.ResidualVQ(
        dim=4, num_quantizers=depth, codebook_size=12, shared_codebook=True
    ).eval()
    theirs.layers[0]._codebook.embed.copy_(ours.embedding[None])
    z = torch.randn(2, 4, 5, 3)
    values, codes, _ = theirs(z.flatten(2).mT)  # its image mode breaks in 1.32.0
    values = values.mT.view_as(z)
    found = ours(z)
    assert torch.equal(found.codes, codes.reshape(2, 5, 3 * depth))
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(ours.lookup(found.codes).movedim(-1, 1), values)


def test_residual_vq_of_depth_one_is_vq_in_training_too():
    one = residual(1, patience=3).train()
    plain = VQEMA(VQConfig(12, 4, patience=3)).train()
    plain.load_state_dict(one.state_dict())
    for step in range(5):
        z = torch.randn(2, 4, 3, 3)
        torch.manual_seed(step)
        a = one(z)
        torch.manual_seed(step)
        b = plain(z)
        assert torch.equal(a.codes, b.codes)
        torch.testing.assert_close(a.penalty, b.penalty)
        torch.testing.assert_close(one.embedding, plain.embedding)


def test_deeper_is_nearer_and_every_residual_moves_the_codebook():
    """More depths reconstruct better; the moving averages equal NumPy's over all residuals."""
    model = residual(3, decay=0.8, patience=1000).train()
    book = model.embedding.double().numpy().copy()
    total, size = book.copy(), np.ones(12)
    z = torch.randn(1, 4, 6, 6)
    left = z.double().movedim(1, -1).reshape(-1, 4).numpy()
    count, sums, errors = np.zeros(12), np.zeros((12, 4)), []
    for _ in range(3):
        chosen = ((left[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        np.add.at(count, chosen, 1)
        np.add.at(sums, chosen, left)
        left = left - book[chosen]
        errors.append((left**2).mean())
    out = model(z)
    assert out.penalty.item() == pytest.approx(0.25 * sum(errors), rel=1e-4)
    size, total = 0.8 * size + 0.2 * count, 0.8 * total + 0.2 * sums
    smooth = (size + 1e-5) / (size.sum() + 12e-5) * size.sum()
    np.testing.assert_allclose(model.embedding.numpy(), total / smooth[:, None], atol=1e-5)
    model.eval()
    for _ in range(30):
        model.train()(z)
    shallow = residual(1)
    shallow.embedding.copy_(model.embedding)
    far, near = ((m.eval()(z).values - z).square().mean() for m in (shallow, model))
    assert near < 0.5 * far


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 99))
def test_lfq_lookup_and_codes_are_inverse(bits, seed):
    torch.manual_seed(seed)
    lfq = LFQ(LFQConfig(bits)).eval()
    every = torch.arange(2**bits)
    out = lfq(lfq.lookup(every).T[None, :, :, None] * (0.1 + torch.rand(1)))
    assert torch.equal(out.codes[0, :, 0], every)
    assert out.penalty == 0
    apart = torch.cdist(lfq.features(), lfq.features(), p=1)
    differ = [[bin(a ^ b).count("1") for b in range(2**bits)] for a in range(2**bits)]
    torch.testing.assert_close(apart, torch.tensor(differ).float(), atol=1e-4, rtol=0)


def test_lfq_groups_bound_the_entropy_and_are_exact_for_independent_bits():
    torch.manual_seed(0)
    whole, split = (LFQ(LFQConfig(6, 1.0, 1.0, 0.0, group=g)).train() for g in (6, 2))
    dependent = torch.randn(500, 1).expand(500, 6).T[None, :, :, None]
    # The mean's entropy enters with a minus: an upper bound of it is a lower penalty.
    assert split(dependent).penalty < whole(dependent).penalty - 0.5
    every = LFQ(LFQConfig(6)).lookup(torch.arange(64)).T[None, :, :, None]
    torch.testing.assert_close(split(every).penalty, whole(every).penalty, atol=1e-4, rtol=1e-4)
