"""Visual tokens and the words they stand for, against a loop over tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiasm.mllm.embedding_alignment import TEMPERATURE, alignment_loss, word_shares


@given(st.lists(st.tuples(st.lists(st.integers(5, 9), min_size=1, max_size=7), st.integers(1, 6))))
def test_every_slot_shares_out_one_and_every_word_is_said(pairs):
    if not pairs:
        return
    captions, slots = zip(*pairs, strict=True)
    words, shares = word_shares([torch.tensor(c) for c in captions], slots)
    assert shares.shape == (sum(slots), len(words))
    torch.testing.assert_close(shares.sum(1), torch.ones(sum(slots)))
    for caption, n, rows in zip(captions, slots, shares.split(list(slots)), strict=True):
        said = set(words[rows.sum(0) > 0].tolist())
        assert said <= set(caption)
        if n >= len(caption) or len(caption) % n == 0:
            assert said == set(caption)


def test_words_keep_their_order():
    words, shares = word_shares(
        [torch.tensor([7, 3, 5])] * 2 + [torch.tensor([5, 3, 7, 7])], [3, 4, 2]
    )
    assert words.tolist() == [3, 5, 7]
    said = words[shares.argmax(1)].tolist()
    assert said[:3] == [7, 3, 5]
    assert said[3:7] == [7, 7, 3, 5]
    assert shares[7].tolist() == [0.5, 0.5, 0]
    assert shares[8].tolist() == [0, 0, 1]


def test_losses_equal_a_loop():
    torch.manual_seed(0)
    tokens, table = torch.randn(5, 8), torch.randn(3, 8)
    shares = torch.softmax(torch.randn(5, 3), 1)
    which, distance = alignment_loss(tokens, table, shares)
    for t in range(5):
        scores = [
            math.exp(TEMPERATURE * float(tokens[t] @ w / tokens[t].norm() / w.norm()))
            for w in table
        ]
        chance = [s / sum(scores) for s in scores]
        cross = -sum(float(shares[t, i]) * math.log(chance[i]) for i in range(3))
        mean = sum(float(shares[t, i]) * table[i] for i in range(3))
        assert float(which[t]) == pytest.approx(cross, rel=1e-4)
        expected = float((tokens[t] - mean).square().mean() / table.square().mean())
        assert float(distance[t]) == pytest.approx(expected, rel=1e-4)


def test_a_token_that_is_its_word_has_no_distance():
    table = torch.randn(4, 16)
    _, distance = alignment_loss(table, table, torch.eye(4))
    assert distance.abs().max() < 1e-12
