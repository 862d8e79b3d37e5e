"""The attention seam against a brute-force loop over tokens."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.nn import attention as attention_module
from chiasm.nn.attention import (
    TokenIndex,
    attention,
    cached_layout,
    full_layout,
    packed_layout,
    visible,
    within,
)
from chiasm.nn.cache import KVCache


def brute_force(q, k, v, index, softcap=None, window=None, sinks=None):
    """One query at a time, by the rule as written in core/batch.py."""
    B, H, T, D = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for t in range(T):
            if index.segment[b, t] < 0:
                continue
            seen = [
                u
                for u in range(T)
                if index.segment[b, u] == index.segment[b, t]
                and index.block[b, u] <= index.block[b, t]
                and index.branch[b, u] in (0, index.branch[b, t])
                and (
                    window is None
                    or index.block[b, u] == index.block[b, t]
                    or index.position[b, t] - index.position[b, u] < window
                )
            ]
            for h in range(H):
                g = h * k.shape[1] // H
                logits = torch.stack([q[b, h, t] @ k[b, g, u] for u in seen]) * D**-0.5
                if softcap:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.exp() / (
                    logits.exp().sum() + (0 if sinks is None else sinks[h].exp())
                )
                out[b, h, t] = sum(w * v[b, g, u] for w, u in zip(weights, seen, strict=True))
    return out


@st.composite
def packs(draw):
    """Rows of segments, each causal, with a bidirectional span or with branches."""
    rows, T = [], draw(st.integers(4, 14))
    for _ in range(draw(st.integers(1, 3))):
        segment, block, branch, position = [], [], [], []
        number = 0
        while len(segment) < T and draw(st.booleans()) | (number == 0):
            length = draw(st.integers(1, T - len(segment)))
            segment += [number] * length
            kind = draw(st.sampled_from(["causal", "prefix", "branches"]))
            trunk = draw(st.integers(0, length))
            if kind == "causal":
                block += list(range(length))
                branch += [0] * length
                position += list(range(length))
            elif kind == "prefix":
                block += [0] * trunk + list(range(1, length - trunk + 1))
                branch += [0] * length
                position += list(range(length))
            else:
                rest = length - trunk
                cut = draw(st.integers(0, rest))
                block += [
                    *range(trunk),
                    *range(trunk, trunk + cut),
                    *range(trunk, trunk + rest - cut),
                ]
                position += block[-length:]
                branch += [0] * trunk + [1] * cut + [2] * (rest - cut)
            number += 1
        pad = T - len(segment)
        columns = (segment, block, branch, position)
        rows.append([x + [0 if i else -1] * pad for i, x in enumerate(columns)])
    return TokenIndex(*(torch.tensor([row[i] for row in rows]) for i in range(4)))


@pytest.fixture(params=[0, attention_module.SHORT_FP32], ids=["fused", "plain"], scope="module")
def kernel(request):
    """Both ways that rows can attend."""
    with mock.patch.object(attention_module, "SHORT_FP32", request.param):
        yield


@settings(max_examples=40, deadline=None)
@given(
    packs(), st.sampled_from([None, 2.0]), st.sampled_from([None, 1, 3]), st.booleans(), st.data()
)
def test_attend_equals_brute_force(kernel, index, softcap, window, sink, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    B, T = index.segment.shape
    q, k, v = torch.randn(B, 4, T, 8), torch.randn(B, 2, T, 8), torch.randn(B, 2, T, 8)
    sinks = torch.randn(4) if sink else None
    out = attention(q, k, v, packed_layout(index), None, softcap, window, sinks)
    real = (index.segment >= 0)[:, None, :, None]
    expected = brute_force(q, k, v, index, softcap, window, sinks)
    torch.testing.assert_close(out * real, expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(packs(), st.integers(0, 99))
def test_other_segments_change_nothing_at_all(kernel, index, seed):
    """Perturbing every token outside a segment changes that segment's output by exactly 0."""
    torch.manual_seed(seed)
    B, T = index.segment.shape
    q, k, v = (torch.randn(B, 2, T, 8) for _ in range(3))
    layout = packed_layout(index)
    mine = ((index.segment == 0) & (torch.arange(B)[:, None] == 0))[:, None, :, None]
    noise = torch.randn_like(q) * ~mine
    before = attention(q, k, v, layout)
    after = attention(q + noise, k + noise, v + noise, layout)
    assert torch.equal(before * mine, after * mine)


def test_gradients_are_those_of_segments_alone(kernel):
    """In one row with padding, of lengths that are grouped together and of one that is not."""
    torch.manual_seed(0)
    end = 40
    segment = torch.tensor([[0] * 3 + [1] * 30 + [2] * 4 + [-1] * 3])
    block = torch.tensor([[*range(3), *range(30), *range(4), 0, 0, 0]])
    q, k, v = (torch.randn(1, h, end, 8, requires_grad=True) for h in (4, 2, 2))
    weight = torch.randn(1, 4, end, 8)
    packed = attention(q, k, v, packed_layout(TokenIndex(segment, block, 0 * block))) * weight
    own = torch.autograd.grad(packed.sum(), (q, k, v))
    alone = [
        attention(
            *(x[:, :, a : a + n] for x in (q, k, v)), attention_module.AttentionPlan(causal=True)
        )
        * weight[:, :, a : a + n]
        for a, n in ((0, 3), (3, 30), (33, 4))
    ]
    expected = torch.autograd.grad(sum(x.sum() for x in alone), (q, k, v))
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert a[:, :, -3:].abs().max() == 0


def test_gradients_are_finite_with_padding(kernel):
    segment = torch.tensor([[0, 0, 1, -1, -1]])
    index = TokenIndex(segment, torch.zeros_like(segment), torch.zeros_like(segment))
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    attention(q, k, v, packed_layout(index)).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_cached_attention_equals_one_pass(window):
    torch.manual_seed(0)
    T, step = 9, 4
    q, k, v = (torch.randn(2, 2, T, 8) for _ in range(3))
    segment = torch.zeros(2, T, dtype=torch.long)
    order = torch.arange(T).expand(2, T)
    index = TokenIndex(segment, order, torch.zeros_like(segment), order)
    whole = attention(q, k, v, packed_layout(index), window=window)
    cache, parts = KVCache(), []
    for start in range(0, T, step):
        span = slice(start, min(T, start + step))
        layout = cache.extend(index.map(lambda column, span=span: column[:, span]))
        keys, values = cache.update(k[:, :, span], v[:, :, span], 0)
        parts.append(attention(q[:, :, span], keys, values, layout, window=window))
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-6, rtol=1e-5)


def test_cache_grows_and_selects_rows():
    cache = KVCache()
    k = torch.arange(3 * 200.0).view(3, 1, 200, 1)
    for t in range(200):
        one = torch.zeros(3, 1, dtype=torch.long)
        cache.extend(TokenIndex(one, one + t, one))
        keys, _ = cache.update(k[:, :, t : t + 1], k[:, :, t : t + 1], 0)
    assert torch.equal(keys, k)
    cache.select(torch.tensor([2, 0]))
    one = torch.zeros(2, 1, dtype=torch.long)
    cache.extend(TokenIndex(one, one + 200, one))
    keys, _ = cache.update(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 0)
    assert torch.equal(keys[:, :, :200], k[[2, 0]])


def test_visible_draws_the_diagram_of_the_docstring():
    segment = torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    block = torch.tensor([[0, 0, 0, 1, 2, 0, 1]])
    index = TokenIndex(segment, block, torch.zeros_like(block))
    rows = ["".join("1" if x else "." for x in row) for row in visible(index, index)[0].tolist()]
    assert rows == ["111....", "111....", "111....", "1111...", "11111..", ".....1.", ".....11"]


def test_a_window_draws_its_band_and_leaves_blocks_whole():
    block = torch.tensor([[0, 0, 0, 1, 2, 3]])
    index = TokenIndex(
        *(torch.zeros_like(block), block, torch.zeros_like(block), torch.arange(6)[None])
    )
    rows = ["".join("1" if x else "." for x in row) for row in visible(index, index, 2)[0].tolist()]
    assert rows == ["111...", "111...", "111...", "..11..", "...11.", "....11"]


def test_a_window_nobody_reaches_costs_no_mask_and_without_positions_it_is_refused():
    segment, order = torch.zeros(1, 6, dtype=torch.long), torch.arange(6)[None]
    layout = packed_layout(TokenIndex(segment, order, segment, order))
    assert within(layout, 6).causal
    assert within(layout, 6).mask is None
    assert within(layout, 5).mask is not None
    assert within(layout, 5) is within(layout, 5)
    for blind in (packed_layout(TokenIndex(segment, order, segment)), full_layout()):
        with pytest.raises(ValueError, match="window"):
            within(blind, 3)


def test_padded_queries_over_a_cache_are_finite():
    query = TokenIndex(*(torch.tensor([[-1]]) for _ in range(3)))
    key = TokenIndex(torch.tensor([[0, -1]]), torch.tensor([[0, 0]]), torch.tensor([[0, 0]]))
    out = attention(
        torch.randn(1, 1, 1, 4),
        torch.randn(1, 1, 2, 4),
        torch.randn(1, 1, 2, 4),
        cached_layout(query, key),
    )
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("causal", [True, False])
def test_softcap_of_a_huge_cap_is_no_cap(causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    segment = torch.zeros(1, 5, dtype=torch.long)
    block = torch.arange(5)[None] if causal else segment
    layout = packed_layout(TokenIndex(segment, block, segment))
    torch.testing.assert_close(
        attention(q, k, v, layout, softcap=1e4), attention(q, k, v, layout), atol=1e-4, rtol=1e-4
    )
