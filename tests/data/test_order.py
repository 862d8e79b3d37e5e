import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.data.order import index_at, permutation, randomness_at

counts, seeds = st.integers(1, 40), st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(counts, seeds, st.integers(0, 5))
def test_every_epoch_visits_each_exactly_once(count: int, seed: int, epoch: int):
    places = range(epoch * count, (epoch + 1) * count)
    assert sorted(index_at(place, count, seed) for place in places) == list(range(count))


@settings(max_examples=40, deadline=None)
@given(counts, seeds, st.lists(st.integers(0, 400), min_size=1, max_size=20))
def test_the_order_of_asking_and_what_was_asked_before_do_not_matter(
    count: int, seed: int, cursors: list[int]
):
    forward = [index_at(c, count, seed) for c in cursors]
    permutation.cache_clear()
    np.random.seed(1)
    backward = [index_at(c, count, seed) for c in reversed(cursors)]
    assert forward == backward[::-1]


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_randomness_is_of_the_place_alone():
    draws = [randomness_at(cursor, seed).random() for seed in (0, 1) for cursor in range(50)]
    again = [randomness_at(cursor, seed).random() for seed in (0, 1) for cursor in range(50)]
    assert draws == again
    assert len(set(draws)) == 100
