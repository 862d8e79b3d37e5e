"""What a cache is told to foresee is what it would have worked out step by step."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.nn.attention import TokenIndex
from chiasm.nn.cache import KVCache


def index(segment, block, branch):
    return TokenIndex(*(torch.tensor(column) for column in (segment, block, branch)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99)
)
def test_foreseen_steps_equal_steps_taken_one_by_one(rows, prompt, columns, steps, seed):
    """Prompts with padding, then `columns` branches a row, some rows with nothing to say."""
    random = torch.Generator().manual_seed(seed)
    padding = torch.rand(rows, prompt, generator=random) < 0.2
    at = torch.arange(prompt).expand(rows, -1)
    first = TokenIndex(torch.where(padding, -1, 0), at, torch.zeros_like(at))
    idle = torch.rand(rows, columns, generator=random) < 0.2
    branch = torch.arange(columns).expand(rows, -1) + (columns > 1)
    new = TokenIndex(torch.where(idle, -1, 0), torch.full((rows, columns), prompt), branch)
    plain, told = KVCache(), KVCache()
    start = torch.randn(rows, 2, prompt, 4)
    for cache in (plain, told):
        cache.extend(first)
        cache.update(start, start, 0)
    told.foresee(new, steps)
    for step in range(steps):
        now = dataclasses.replace(new, block=new.block + step)
        a, b = plain.extend(now), told.extend(now)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.bias(torch.float32), b.bias(torch.float32))
        keys = torch.randn(rows, 2, columns, 4)
        assert torch.equal(plain.update(keys, keys, 0)[0], told.update(keys, keys, 0)[0])
    assert len(plain) == len(told)
    after = dataclasses.replace(new, block=new.block + steps)
    assert torch.equal(plain.extend(after).mask, told.extend(after).mask)


def test_what_was_tried_is_forgotten():
    tried, fresh = KVCache(), KVCache()
    prompt = index([[0, 0]], [[0, 1]], [[0, 0]])
    word = index([[0]], [[2]], [[0]])
    for cache in (tried, fresh):
        cache.extend(prompt)
        cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    tried.extend(index([[0, 0, 0]], [[5, 5, 5]], [[1, 1, 1]]))
    tried.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), 0)
    tried.forget(2)
    assert len(tried) == 2
    keys = torch.full((1, 1, 1, 4), 7.0)
    for cache in (tried, fresh):
        cache.layout = cache.extend(word)
        cache.held = cache.update(keys, keys, 0)
    assert torch.equal(tried.layout.mask, fresh.layout.mask)
    assert torch.equal(tried.held[0], fresh.held[0])
