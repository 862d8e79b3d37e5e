"""Rotation, norms, losses and the block against transformers, NumPy and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

from chiasm.nn import loss
from chiasm.nn.attention import TokenIndex, packed_layout
from chiasm.nn.block import Attention, Block
from chiasm.nn.loss import sigmoid_contrastive, softmax_contrastive, token_loss
from chiasm.nn.norm import HeadNorm
from chiasm.nn.rope import rotate, rotation

WIDTH, HEADS, KV_HEADS, HIDDEN = 32, 4, 2, 48


def llama_config(theta=10000.0):
    return LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=HIDDEN,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )


def causal(rows, length):
    zero = torch.zeros(rows, length, dtype=torch.long)
    return packed_layout(TokenIndex(zero, torch.arange(length).expand(rows, length), zero))


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_equals_transformers(theta):
    torch.manual_seed(0)
    position = torch.randint(0, 3000, (2, 7))
    q, k = torch.randn(2, HEADS, 7, 8), torch.randn(2, KV_HEADS, 7, 8)
    cos, sin = llama.LlamaRotaryEmbedding(llama_config(theta))(q, position)
    theirs = llama.apply_rotary_pos_emb(q, k, cos, sin)
    turn = rotation(position, 8, theta)
    ours = [rotate(x.transpose(1, 2), *turn).transpose(1, 2) for x in (q, k)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_rotated_products_depend_on_the_distance_only(a, b, shift):
    torch.manual_seed(a)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i, j):
        turned = [rotate(x, *rotation(torch.tensor([[p]]), 16)) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(a, b), score(a + shift, b + shift), atol=1e-3, rtol=1e-3)


def test_head_norm_equals_numpy():
    torch.manual_seed(0)
    norm = HeadNorm(3, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 8)
    a = x.numpy().astype(np.float64)
    mean, deviation = a.mean(-1, keepdims=True), np.sqrt(a.var(-1, keepdims=True) + 1e-5)
    gain, bias = (p.detach().numpy() for p in (norm.weight, norm.bias))
    np.testing.assert_allclose(
        norm(x).detach().numpy(), (a - mean) / deviation * gain + bias, atol=1e-5
    )


@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_scaling_the_query_matrix_leaves_normalised_attention_alone(scale):
    """With QK-norm the logits, hence the output, do not depend on the scale of W_q and W_k."""
    torch.manual_seed(0)
    x, turn = torch.randn(1, 6, WIDTH), rotation(torch.arange(6)[None], 8)

    def change(qk_norm):
        part = Attention(WIDTH, HEADS, KV_HEADS, qk_norm)
        torch.nn.init.normal_(part.q_proj.weight)  # far above the norm's epsilon
        before = part(x, turn, causal(1, 6))
        with torch.no_grad():
            part.q_proj.weight.mul_(scale)
        return (part(x, turn, causal(1, 6)) - before).abs().max()

    assert change(True) < 1e-4
    assert change(False) > 1e-2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(-50, 50), st.integers(0, 99))
def test_token_loss_equals_cross_entropy(count, size, offset, seed):
    torch.manual_seed(seed)
    logits, targets = 5 * torch.randn(count, size) + offset, torch.randint(0, size, (count,))
    nll, z = token_loss(logits, targets)
    torch.testing.assert_close(
        nll, F.cross_entropy(logits, targets, reduction="none"), atol=1e-4, rtol=1e-4
    )
    a = logits.double().numpy()
    np.testing.assert_allclose(z.numpy(), np.log(np.exp(a).sum(1)) ** 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_token_loss_piece_by_piece(rows, dtype, monkeypatch):
    """Against torch's on all rows at once, in fp32."""
    monkeypatch.setattr(loss, "PIECE", 30)  # three rows
    torch.manual_seed(rows)
    logits = (4 * torch.randn(rows, 10)).to(dtype).requires_grad_()
    targets, weight = torch.randint(0, 10, (rows,)), torch.rand(rows)
    nll, z = token_loss(logits, targets)
    assert nll.dtype == z.dtype == torch.float32
    (own,) = torch.autograd.grad((weight * nll + 0.1 * z).sum(), logits, retain_graph=True)
    full = logits.detach().float().requires_grad_()
    theirs = weight * F.cross_entropy(full, targets, reduction="none")
    (expected,) = torch.autograd.grad((theirs + 0.1 * full.logsumexp(1) ** 2).sum(), full)
    torch.testing.assert_close(own, expected.to(dtype), atol=1e-6, rtol=1e-5)
    (again,) = torch.autograd.grad((weight * nll + 0.1 * z).sum(), logits)
    assert torch.equal(own, again)


def test_gradient_of_the_z_loss():
    """d(log²Z)/dx = 2·logZ·softmax(x)."""
    torch.manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    token_loss(logits, torch.zeros(4, dtype=torch.long)).log_z_squared.sum().backward()
    expected = 2 * logits.logsumexp(1, keepdim=True) * logits.softmax(1)
    torch.testing.assert_close(logits.grad, expected.detach(), atol=1e-5, rtol=1e-5)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_sigmoid_loss_equals_a_double_loop():
    torch.manual_seed(0)
    image, text, match = unit(5, 8), unit(3, 8), torch.rand(5, 3) > 0.5
    scale, bias = torch.tensor(7.0), torch.tensor(-2.5)
    total = 0.0
    for i in range(5):
        for j in range(3):
            logit = 7.0 * float(image[i] @ text[j]) - 2.5
            total += np.log1p(np.exp(-logit if match[i, j] else logit))
    assert sigmoid_contrastive(image, text, match, scale, bias).item() == pytest.approx(total, 1e-5)


def test_softmax_loss_is_clips_for_pairs():
    torch.manual_seed(0)
    image, text, scale = unit(6, 8), unit(6, 8), torch.tensor(14.0)
    logits, labels = scale * image @ text.T, torch.arange(6)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    ours = softmax_contrastive(image, text, torch.eye(6, dtype=torch.bool), scale)
    torch.testing.assert_close(ours / 6, clip)


def test_softmax_loss_shares_several_matches_evenly():
    torch.manual_seed(0)
    image, text, scale = unit(4, 8), unit(2, 8), torch.tensor(3.0)
    match = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    logits = (scale * image @ text.T).double().numpy()
    rows = columns = 0.0
    for i in range(4):
        log_p = logits[i] - np.log(np.exp(logits[i]).sum())
        rows -= log_p[match[i].numpy()].mean()
    for j in range(2):
        log_p = logits[:, j] - np.log(np.exp(logits[:, j]).sum())
        columns -= log_p[match[:, j].numpy()].mean()
    expected = (rows / 4 + columns / 2) / 2 * 4
    assert softmax_contrastive(image, text, match, scale).item() == pytest.approx(expected, 1e-5)


def test_block_equals_a_llama_layer():
    torch.manual_seed(0)
    theirs = llama.LlamaDecoderLayer(llama_config(), 0)
    for norm in (theirs.input_layernorm, theirs.post_attention_layernorm):
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    ours = Block(WIDTH, HEADS, KV_HEADS, HIDDEN, qk_norm=False, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    B, T = 2, 9
    x, position = torch.randn(B, T, WIDTH), torch.randint(0, 200, (B, T))
    mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
    turn = llama.LlamaRotaryEmbedding(llama_config())(x, position)
    expected = theirs(x, attention_mask=mask, position_embeddings=turn)
    got = ours(x, rotation(position, WIDTH // HEADS), causal(B, T))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_both_branches_in_training_only():
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, KV_HEADS, HIDDEN, qk_norm=True, dropout=1.0)
    x, turn = torch.randn(1, 4, WIDTH), rotation(torch.arange(4)[None], 8)
    assert torch.equal(block(x, turn, causal(1, 4)), x)
    assert not torch.equal(block.eval()(x, turn, causal(1, 4)), x)
