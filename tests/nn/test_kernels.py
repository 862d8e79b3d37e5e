"""The kernels of accelerators, on a CPU: functions with their interfaces stand in for them."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chiasm.core.batch import Packing
from chiasm.nn import attention as attention_module
from chiasm.nn import kernels
from chiasm.nn.attention import (
    TokenIndex,
    attention,
    images_layout,
    largest_logit,
    packed_layout,
    prefill_layout,
    visible,
    within,
)
from chiasm.nn.kernels import KERNELS, Kernels, block_mask, block_pairs, mask_mod
from kernel_stand_ins import (
    SIZE,
    blocks_of,
    flex,
    listed,
    using,
    varlen,
    varlen_of_2_10,
    varlen_of_2_11,
)
from pretend_device import syncs


@pytest.fixture(autouse=True)
def small_blocks():
    with blocks_of(SIZE):
        yield


KINDS = {
    "causal": lambda n, cut: ([*range(n)], [0] * n, [*range(n)]),
    "image": lambda n, cut: ([0] * n, [0] * n, [*range(n)]),
    "prefix": lambda n, cut: ([0] * cut + [*range(1, n - cut + 1)], [0] * n, [*range(n)]),
    "inside": lambda n, cut: (
        [*range(cut), *[cut] * (n - cut - n // 3), *range(cut + 1, cut + 1 + n // 3)][:n],
        [0] * n,
        [*range(n)],
    ),
    "branches": lambda n, cut: (
        [*range(cut), *range(cut, cut + (n - cut) // 2), *range(cut, n - (n - cut) // 2)],
        [0] * cut + [1] * ((n - cut) // 2) + [2] * (n - cut - (n - cut) // 2),
        [*range(cut), *range(cut, cut + (n - cut) // 2), *range(cut, n - (n - cut) // 2)],
    ),
}


@st.composite
def packs(draw, kinds=tuple(KINDS), most=30):
    """Rows of segments of these kinds, with padding."""
    rows, T = [], draw(st.integers(SIZE, most))
    for _ in range(draw(st.integers(1, 2))):
        columns = [[], [], [], []]
        number = 0
        while len(columns[0]) < T and (number == 0 or draw(st.booleans())):
            n = draw(st.integers(1, T - len(columns[0])))
            cut = draw(st.integers(0, n - n // 3))
            own = KINDS[draw(st.sampled_from(kinds))](n, cut)
            for column, values in zip(columns, ([number] * n, *own), strict=True):
                assert len(values) == n
                column += values
            number += 1
        pad = T - len(columns[0])
        rows.append([x + [0 if i else -1] * pad for i, x in enumerate(columns)])
    return TokenIndex(*(torch.tensor([row[i] for row in rows]) for i in range(4)))


def packing(index):
    columns = (index.segment, index.block, index.branch, index.position)
    return Packing.of(*(None if c is None else c.numpy() for c in columns))


def qkv(index, heads=(4, 2, 2), size=8):
    B, T = index.segment.shape
    return [torch.randn(B, h, T, size, requires_grad=True) for h in heads]


def assert_same(index, inputs, options, function, flexible=flex, gradients=True):
    """attention by kernels equals attend by groups, with its gradients."""
    real = (index.segment >= 0)[:, None, :, None]
    expected = attention(*inputs, packed_layout(index), **options) * real
    with using(function, flexible):
        layout = packed_layout(index, packing(index))
        assert layout.rows is not None
        mixed = attention(*inputs, layout, **options)
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed * real, expected, atol=1e-5, rtol=1e-4)
    if not gradients:
        return
    leaves = [*inputs, *(x for x in options.values() if isinstance(x, torch.Tensor))]
    weight = torch.randn_like(mixed) * real
    ours = torch.autograd.grad((mixed * weight).sum(), leaves)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    packs(),
    st.sampled_from([None, 0.3]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 1, 5]),
    st.booleans(),
    st.sampled_from([8, 24]),
    st.integers(0, 99),
)
def test_flex_attention_equals_groups(index, scale, softcap, window, sink, size, seed):
    torch.manual_seed(seed)
    options = {"scale": scale, "softcap": softcap, "window": window}
    options["sinks"] = torch.randn(4, requires_grad=True) if sink else None
    assert_same(index, qkv(index, size=size), options, None)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["causal", "image"]).flatmap(lambda kind: packs((kind,))),
    st.sampled_from([varlen, varlen_of_2_11, varlen_of_2_10]),
    st.sampled_from([None, 0.3]),
    st.sampled_from([None, 1, 5]),
    st.integers(0, 99),
)
def test_variable_length_attention_equals_groups(index, function, scale, window, seed):
    torch.manual_seed(seed)
    assert_same(index, qkv(index), {"scale": scale, "window": window}, function)


@settings(max_examples=3, deadline=None)
@given(packs(most=20), st.sampled_from([None, 3]), st.integers(0, 99))
def test_torchs_own_flex_attention_equals_groups(index, window, seed):
    """Uncompiled: on a CPU it has no gradients, and looks at mask_mod alone."""
    from torch.nn.attention import flex_attention as theirs

    torch.manual_seed(seed)
    inputs = [x.detach() for x in qkv(index)]
    with mock.patch.object(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True):
        options = {"window": window, "softcap": 2.0, "sinks": torch.randn(4)}
        assert_same(index, inputs, options, None, theirs.flex_attention, gradients=False)


def test_which_kernel_serves_which_layout():
    calls = []

    def watched(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    # functools.wraps would do, but varlen's options are read from its signature.
    named = mock.create_autospec(varlen, side_effect=watched("varlen", varlen))
    zero, order = torch.zeros(1, 12, dtype=torch.long), torch.arange(12)[None]
    two = torch.tensor([[0] * 5 + [1] * 7])
    restart = torch.tensor([[*range(5), *range(7)]])
    causal, image = TokenIndex(two, restart, zero, restart), TokenIndex(two, zero, zero, restart)
    prefix = TokenIndex(two, restart.clamp(min=2), zero, restart)
    gaps = TokenIndex(two, restart, zero, 2 * restart)
    alone = TokenIndex(zero, order, zero, order)
    cases = [
        (causal, {}, "varlen"),
        (image, {}, "varlen"),
        (causal, {"window": 3}, "varlen"),
        (causal, {"softcap": 3.0}, "flex"),
        (causal, {"sinks": torch.zeros(4)}, "flex"),
        (gaps, {}, "varlen"),
        (gaps, {"window": 3}, "flex"),
        (prefix, {}, "flex"),
    ]
    with using(named, watched("flex", flex)):
        for index, options, expected in cases:
            calls.clear()
            attention(*qkv(index), packed_layout(index, packing(index)), **options)
            assert calls == [expected], (options, calls)
        calls.clear()
        attention(*qkv(causal), packed_layout(causal))  # the host does not know that it is causal
        short = TokenIndex(zero, (order - 1).clamp(min=0), zero, order).map(
            lambda c: c[:, : SIZE - 1]
        )
        attention(*qkv(short), packed_layout(short, packing(short)))
        assert calls == ["flex"]
    with using(None, watched("flex", flex)):  # fp32: one causal row is scaled_dot_product_attention
        calls.clear()
        attention(*qkv(alone), packed_layout(alone, packing(alone)))
        assert calls == []


def test_the_table_of_devices():
    assert KERNELS["cpu"].flex is None
    assert KERNELS["cpu"].products
    assert KERNELS["cuda"].flex is not None
    assert KERNELS["mps"] == kernels.kernels_of(torch.device("xla")) == Kernels()
    half = torch.empty(1, 2, 3, 64, dtype=torch.bfloat16)
    with mock.patch.object(kernels, "_has_flash", return_value=True):
        assert kernels.flash_varlen(half) is not None
        for refused in (half.float(), half[..., :60], half.repeat(1, 1, 1, 5)):
            assert kernels.flash_varlen(refused) is None
    assert kernels.flash_varlen(half) is None, "it is on a CPU"


@settings(max_examples=40, deadline=None)
@given(packs(), st.sampled_from([None, 1, 4]))
def test_mask_mod_is_the_rule_and_blocks_never_contradict_it(index, window):
    B, T = index.segment.shape
    at = (torch.arange(B)[:, None, None], None, torch.arange(T)[:, None], torch.arange(T))
    seen = visible(index, index, window)
    assert torch.equal(mask_mod(index, index, window)(*at), seen)
    real = index.segment >= 0
    wanted = seen & real[:, :, None] & real[:, None, :]
    missing = -T % SIZE
    blocks = F.pad(wanted, (0, missing, 0, missing)).unflatten(2, (-1, SIZE))
    blocks = blocks.unflatten(1, (-1, SIZE)).transpose(2, 3).flatten(3)
    some, every = block_pairs(index, index, window)
    assert not (blocks.any(-1) & ~some).any()
    assert not (every & ~blocks.all(-1)).any()
    if window is None and not index.branch.any():  # then they are exact
        assert torch.equal(some, blocks.any(-1))
        assert torch.equal(every, blocks.all(-1))
    whole = block_mask(index, index, window)
    assert whole.seq_lengths == (T, T)
    assert torch.equal(listed(whole.full_kv_num_blocks, whole.full_kv_indices), every)
    # What the backward pass goes by: the same pairs, from the keys' side.
    assert torch.equal(listed(whole.q_num_blocks, whole.q_indices).mT, some & ~every)


def test_mask_mod_is_the_rule_as_core_batch_writes_it():
    index = TokenIndex(
        *(
            torch.tensor([x])
            for x in (
                [0, 0, 0, 0, 1, 1],
                [0, 0, 1, 1, 0, 0],
                [0, 0, 1, 2, 0, 0],
                [0, 1, 2, 2, 0, 1],
            )
        )
    )
    rule = mask_mod(index, index)
    s, b, r = (x[0].tolist() for x in (index.segment, index.block, index.branch))
    zero = torch.tensor(0)
    for t in range(6):
        for u in range(6):
            expected = s[u] == s[t] and r[u] in (0, r[t]) and b[u] <= b[t]
            assert bool(rule(zero, zero, torch.tensor(t), torch.tensor(u))) == expected


@settings(max_examples=40, deadline=None)
@given(packs())
def test_packing_is_what_a_loop_finds(index):
    found = packing(index)
    segment, block, branch, position = (
        c.numpy() for c in (index.segment, index.block, index.branch, index.position)
    )
    B, T = segment.shape
    expected = []
    for b in range(B):
        for s in range(segment[b].max() + 1):
            at = np.flatnonzero(segment[b] == s)
            own = block[b, at]
            plain = not branch[b, at].any()
            expected.append(
                (
                    b * T + at[0],
                    len(at),
                    plain and all(own[1:] > own[:-1]),
                    plain and len(set(own)) == 1,
                    all(np.diff(position[b, at]) == 1),
                    np.ptp(position[b, at]),
                )
            )
    columns = (found.first, found.lengths, found.causal, found.bidirectional)
    columns += (found.consecutive, found.reach)
    assert [tuple(row) for row in zip(*columns, strict=True)] == expected
    assert found.shape == (B, T)


def test_images_of_one_row():
    with using(varlen):
        layout = images_layout([3, 1, 6], torch.device("cpu"))
        assert layout.rows.bidirectional
        assert layout.rows.cu_seqlens[0].tolist() == [0, 3, 4, 10]
    inputs = [torch.randn(1, 2, 10, 8) for _ in range(3)]
    alone = [
        F.scaled_dot_product_attention(*(x[:, :, a:b] for x in inputs))
        for a, b in ((0, 3), (3, 4), (4, 10))
    ]
    for kernel in (using(varlen), using(None), mock.patch.dict(KERNELS)):
        with kernel:
            mixed = attention(*inputs, images_layout([3, 1, 6], torch.device("cpu")))
        torch.testing.assert_close(mixed, torch.cat(alone, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_prompts_over_a_cache(window):
    """A whole prompt, and one more over what is there, with padding in front of some rows."""
    torch.manual_seed(0)
    segment = torch.zeros(2, 15, dtype=torch.long)
    segment[1, :4] = -1
    order = torch.arange(15).expand(2, 15)
    index = TokenIndex(segment, order, torch.zeros_like(segment), order)
    q, k, v = qkv(index)
    real = (segment >= 0)[:, None, :, None]
    whole = attention(q, k, v, packed_layout(index), window=window) * real
    with using(varlen):
        first = prefill_layout(index, index, packing(index))
        assert first.mask is None
        mixed = attention(q, k, v, first, window=window) * real
        torch.testing.assert_close(mixed, whole, atol=1e-5, rtol=1e-4)
        later = index.map(lambda column: column[:, 6:])
        second = prefill_layout(later, index)
        assert second.mask is None
        mixed = attention(q[:, :, 6:], k, v, second, window=window) * real[:, :, 6:]
        torch.testing.assert_close(mixed, whole[:, :, 6:], atol=1e-5, rtol=1e-4)
        step = index.map(lambda column: column[:, -1:])
        assert prefill_layout(step, index).mask is not None


@settings(max_examples=20, deadline=None)
@given(packs())
def test_largest_logit_of_rows_is_that_of_groups(index):
    torch.manual_seed(0)
    q, k, _ = qkv(index)
    expected = largest_logit(q, k, packed_layout(index))
    with using(varlen):
        torch.testing.assert_close(largest_logit(q, k, packed_layout(index)), expected)


def test_windows_that_nobody_reaches_or_that_cut_no_block():
    index = TokenIndex(*(torch.tensor([x]) for x in ([0] * 8, [*range(8)], [0] * 8, [*range(8)])))
    image = TokenIndex(index.segment, index.branch, index.branch, index.position)
    with using(varlen):
        layout = packed_layout(index, packing(index))
        assert within(layout, 8) is layout
        assert within(layout, 7).rows.window == 7
        assert within(layout, 7) is within(layout, 7)
        whole = packed_layout(image, packing(image))
        assert within(whole, 2) is whole
        blind = packed_layout(TokenIndex(index.segment, index.block, index.branch))
        with pytest.raises(ValueError, match="window"):
            within(blind, 3)


class Largest(TorchDispatchMode):
    """The most values that any tensor made while it is open has."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.values = max([self.values, *made])
        return out


@pytest.mark.parametrize("kind", ["causal", "branches"])
def test_no_tensor_has_a_value_for_every_pair_of_tokens(kind):
    T, n = 2048, 512
    own = KINDS[kind](n, n // 4)
    columns = [[t // n for t in range(T)]] + [x * 4 for x in own]
    index = TokenIndex(*(torch.tensor([x]) for x in columns))
    known = packing(index)
    q, k, v = (torch.randn(1, h, T, 16) for h in (4, 2, 2))

    def kernel(q, *_args, **_kwargs):
        return q * 1.0

    with (
        blocks_of(128),
        mock.patch.object(
            kernels, "_parameters", return_value={"scale", "window_size", "enable_gqa"}
        ),
        using(kernel, kernel),
        Largest() as largest,
    ):
        layout = packed_layout(index, known)
        attention(q, k, v, layout)
        attention(q, k, v, layout, window=7, softcap=3.0)
        assert largest.values == q.numel()
        largest_logit(q, k, layout)
        assert largest.values == 4 * 128 * T  # logits of heads, a block of queries and all keys
        attention(q, k, v, attention_module.cached_layout(index, index))
    assert largest.values >= T * T, "the recorder sees what it is there for"


@pytest.mark.parametrize("table", ["groups", "kernels"])
def test_a_device_is_never_waited_for(pretend, table):
    """Layouts, with windows, are made on the device of what the host knows."""
    torch.manual_seed(0)
    columns = ([0] * 9 + [1] * 6 + [-1], [*range(9), *[0] * 6, 0], [0] * 16, [*range(9), *range(7)])
    index = TokenIndex(*(torch.tensor([x]) for x in columns))
    inputs = [x.detach() for x in qkv(index)]
    expected = attention(*inputs, packed_layout(index), window=3)
    known, there = packing(index), index.map(lambda column: column.to(pretend))
    moved = [x.to(pretend) for x in inputs]

    def kernel(q, *_args, **_kwargs):
        return q * 1.0

    held = KERNELS["cpu"] if table == "groups" else Kernels(lambda _: None, kernel)
    with mock.patch.dict(KERNELS, pretend=held), syncs() as waited:
        layout = packed_layout(there, known)
        mixed = attention(*moved, layout, window=3)
        attention(*moved, layout)
        if table == "kernels":
            assert layout.rows.cu_seqlens[0].device == pretend
            assert within(layout, 3).rows.block_mask.kv_indices.device == pretend
    assert waited == []
    if table == "groups":
        assert torch.equal(mixed.cpu(), expected)


def attend_in_two_segments(length, cut):
    """The first causal, the second an image; by a kernel, and by a mask of all pairs."""
    columns = ([0] * cut + [1] * (length - cut), [*range(cut), *[0] * (length - cut)], [0] * length)
    index = TokenIndex(*(torch.tensor([x]) for x in columns))
    q, k, v = (torch.randn(1, h, length, 24) for h in (4, 2, 2))
    mixed = attention(q, k, v, packed_layout(index, packing(index)))
    mask = visible(index, index)[:, None]
    return mixed, F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


@pytest.mark.slow
def test_flex_attention_is_traced_twice_for_rows_of_all_lengths_and_contents():
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention import flex_attention as theirs

    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(theirs.flex_attention, fullgraph=True, backend=counter)
    torch._dynamo.reset()
    with (
        blocks_of(128),
        mock.patch.object(kernels, "_compiled_flex", return_value=traced),
        using(None, kernels.compiled_flex),
        torch.no_grad(),
    ):
        for T, cut in ((256, 100), (256, 1), (320, 7), (448, 300), (320, 200), (2048, 10)):
            torch.testing.assert_close(*attend_in_two_segments(T, cut), atol=1e-4, rtol=1e-3)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_flex_attention_compiled_for_a_cpu():
    """By inductor, whose kernel goes by the lists of blocks. For lengths of one kind only: those of
    several fail in torch 2.13's C++ (findings/flex_cpu_dynamic.sh)."""
    torch._dynamo.reset()
    with (
        blocks_of(128),
        using(None, kernels.compiled_flex),
        torch.no_grad(),
    ):
        for cut in (100, 7, 300):
            torch.testing.assert_close(*attend_in_two_segments(320, cut), atol=1e-4, rtol=1e-3)
