"""Answers weighed against what their question suggests, and the matching view."""

from collections import Counter

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.balance import answer_rarity
from chiasm.data.objectives import at_most, chat, itm, word_match

IMAGE = Image(PIL.Image.new("RGB", (8, 8)))


def asked(pairs, caption=None):
    turns = []
    for number, (words, reply) in enumerate(pairs):
        turns += [user(*([IMAGE] if number == 0 else []), words), assistant(reply)]
    meta = {} if caption is None else {"caption": caption}
    return Sample(tuple(turns), "s", independent=True, meta=meta)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_weighted_answers_of_a_question_are_equally_frequent(pairs):
    """Summed over the data, every answer of a question weighs the same, and their mean is 1."""
    weight = answer_rarity([asked(pairs)])
    totals = Counter()
    for words, reply in pairs:
        totals[words, reply] += weight(words, reply)
    for words in {q for q, _ in pairs}:
        sums = [total for (q, _), total in totals.items() if q == words]
        np.testing.assert_allclose(sums, sums[0])
        np.testing.assert_allclose(sum(sums), sum(q == words for q, _ in pairs))


def test_unknown_questions_answers_and_free_conversations_weigh_one():
    free = Sample((user("why?"), assistant("so")), "free")
    weight = answer_rarity([free, asked([("red?", "no"), ("red?", "no"), ("red?", "yes")])])
    assert weight("why?", "so") == weight("never asked?", "x") == weight("red?", "maybe") == 1.0
    assert weight("red?", "yes") == pytest.approx(1.5)
    assert weight("red?", "no") == pytest.approx(0.75)


def test_rare_answers_are_chosen_more_often():
    sample = asked([("red?", "yes"), ("blue?", "no"), ("green?", "no"), ("grey?", "no")])
    view = at_most(chat, 1, lambda q, a: 3.0 if a == "yes" else 1.0)
    random = np.random.default_rng(0)
    seen = Counter(view(sample, random).turns[1].text for _ in range(2000))
    assert seen["yes"] / 2000 == pytest.approx(0.5, abs=0.05)
    assert all(isinstance(view(sample, random).turns[0].content[0], Image) for _ in range(5))


def test_match_asks_of_its_own_caption_and_of_others():
    view = itm(["a cat", "a dog", "a cat"], pairs=3)
    random = np.random.default_rng(0)
    for _ in range(20):
        seen = view(asked([("what?", "cat")], "a cat"), random)
        words = [turn.text for turn in seen.turns]
        assert all("a cat" in asked for asked in words[:6:2])
        assert all("a dog" in asked for asked in words[6::2])  # its own is never a "no"
        assert words[1::2] == ["yes"] * 3 + ["no"] * (len(words) // 2 - 3)
        assert seen.independent
        assert len(seen.images) == 1
        assert seen.turns[0].content[0] is IMAGE


def test_spot_asks_of_what_tells_captions_apart():
    captions = [f"a {color} {shape}" for color in "pqrs" for shape in "xyz"]
    view, random = word_match(captions, pairs=3), np.random.default_rng(0)
    seen = Counter()
    for _ in range(300):
        turns = view(asked([("what?", "p")], "a p x"), random).turns
        said = [turn.text for turn in turns]
        for question_, reply in zip(said[::2], said[1::2], strict=True):
            (word,) = set(question_.replace("?", "").split()) & set("apqrsxyz")
            assert (word in "px") == (reply == "yes")
            seen[word] += 1
        assert said[1:6:2] == ["yes"] * 3
    assert set(seen) == set("pqrsxyz")  # "a" tells nothing
    assert seen["p"] == pytest.approx(seen["x"], rel=0.2)


def test_spot_needs_an_image_and_a_telling_word():
    view, random = word_match(["a cat", "a dog"]), np.random.default_rng(0)
    assert view(Sample((user("hello"), assistant("hi")), "text"), random) is None
    assert view(asked([("what?", "cat")], "a"), random) is None


def test_every_other_stranger_is_a_near_one():
    captions = [f"a {color} {shape}" for color in "pqrs" for shape in "xyzw"]
    view, random = itm(captions, hard=True, pairs=2), np.random.default_rng(0)
    shared = {0: 0, 1: 0}
    for _ in range(200):
        turns = view(asked([("what?", "p")], "a p x"), random).turns
        strangers = [turn.text for turn in turns[4::2]]
        if len(strangers) == 2:
            for number, text in enumerate(strangers):
                shared[number] += any(f" {word}" in text for word in "px")
    assert shared[1] > 1.5 * shared[0]


def test_match_needs_an_image_and_a_caption():
    view = itm(["a cat"])
    random = np.random.default_rng(0)
    assert view(Sample((user("hello"), assistant("hi")), "text"), random) is None
    assert view(Sample((user(IMAGE, "what?"),), "silent"), random) is None
