"""A cache whose rows come and go, against lists of what each row holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.nn.attention import TokenIndex
from chiasm.nn.batched_cache import FIRST, SlotCache
from chiasm.nn.cache import KVCache

LAYERS, HEADS, SIZE = 2, 3, 4


def columns(numbers):
    """A TokenIndex of tokens told apart by their numbers [B T]; -1 is padding."""
    segment = torch.where(numbers < 0, -1, 0)
    return TokenIndex(segment, numbers.clone(), torch.zeros_like(numbers), numbers + 7)


def keys(numbers, layer):
    return (numbers[:, None, :, None] + 0.1 * layer).expand(-1, HEADS, -1, SIZE).float()


def write(cache, numbers):
    """Tokens in, and what each layer gets to see."""
    cache.extend(columns(numbers), mark=2 * numbers)
    return [cache.update(keys(numbers, i), -keys(numbers, i), i) for i in range(LAYERS)]


def check(cache, seen, rows):
    """rows: the numbers that each row must hold, in order."""
    for row, held in enumerate(rows):
        there = (cache.index.segment[row] >= 0).nonzero()[:, 0]
        assert cache.index.block[row, there].tolist() == held
        assert cache.index.position[row, there].tolist() == [n + 7 for n in held]
        assert cache.further["mark"][row, there].tolist() == [2 * n for n in held]
        for layer, (k, v) in enumerate(seen):
            expected = np.array(held) + 0.1 * layer
            np.testing.assert_allclose(k[row, 1, there, 2].numpy(), expected, rtol=1e-6)
            np.testing.assert_allclose(v[row, 2, there, 3].numpy(), -expected, rtol=1e-6)
            assert bool(torch.isfinite(k).all())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("asr"), st.integers(0, 99)), max_size=30))
def test_every_row_holds_what_was_said_in_it(acts):
    cache, rows, fresh = SlotCache(4), {}, iter(range(10**6))
    for act, number in acts:
        if act == "a" and cache.free >= 2:
            lengths = [1 + number % 5, 1 + number % 3]
            numbers = torch.full((2, max(lengths)), -1)
            for row, length in enumerate(lengths):
                numbers[row, :length] = torch.tensor([next(fresh) for _ in range(length)])
            own = KVCache()
            write(own, numbers)
            for slot, row in zip(cache.admit(own), numbers.tolist(), strict=True):
                rows[slot] = [n for n in row if n >= 0]
        elif act == "r" and rows:
            slot = list(rows)[number % len(rows)]
            cache.release(slot)
            del rows[slot]
        elif act == "s" and rows:
            new = {slot: next(fresh) for slot in rows}
            order = sorted(rows, key=lambda slot: slot.number)
            assert [slot.number for slot in order] == list(range(len(rows)))
            seen = write(cache, torch.tensor([[new[slot]] for slot in order]))
            for slot in rows:
                rows[slot].append(new[slot])
            check(cache, seen, [rows[slot] for slot in order])
    assert cache.free == 4 - len(rows)
    assert len(cache) == max(map(len, rows.values()), default=0)


def test_a_row_may_grow_beyond_the_room_it_began_with():
    cache, own = SlotCache(2), KVCache()
    write(own, torch.arange(FIRST - 1)[None])
    cache.admit(own)
    held = list(range(FIRST - 1))
    for number in range(FIRST - 1, FIRST + 3):
        held.append(number)
        seen = write(cache, torch.tensor([[number]]))
    check(cache, seen, [held])


def test_more_rows_than_slots_and_other_misuse_are_refused():
    cache, own = SlotCache(1), KVCache()
    write(own, torch.arange(4).view(2, 2))
    with pytest.raises(ValueError, match="2 rows to admit, but 1 of 1 slots free"):
        cache.admit(own)
    with pytest.raises(ValueError, match="for 0 rows"):
        write(cache, torch.tensor([[1]]))
