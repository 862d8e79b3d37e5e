"""Mixtures: what the command line spells, shares by samples and tokens, curricula, exact resume."""

import json
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.errors import CheckpointError, ConfigError, DataError
from chiasm.core.sample import Sample, assistant, user
from chiasm.data.mixture import Ingredient, Mixture, parse, weights
from chiasm.data.turns import Mixed, Turns


def part(name, count):
    return [Sample((user(f"{name}{n}"), assistant("a")), f"{name}{n}", name) for n in range(count)]


def mixed(counts=(5, 3), shares=None, unit="samples", epochs=None, temperature=1.0):
    names = "abcdef"[: len(counts)]
    shares = shares or [None] * len(counts)
    epochs = epochs or [0] * len(counts)
    sources = tuple(map(Ingredient, names, shares, epochs, names))
    return Mixed(
        [part(name, count) for name, count in zip(names, counts, strict=True)],
        Mixture(sources, unit, temperature),
    )


def walk(turns, samples, count, tokens=lambda sample: 1):
    seen = []
    for _ in range(count):
        turn = turns.next()
        seen.append((samples[turn.index].id, turn.view, turn.place))
        turns.use(turn, tokens(samples[turn.index]))
    return seen


def test_the_command_line_and_a_file_spell_the_same(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jsonl").write_text("")
    a, b = tmp_path / "a.jsonl", tmp_path / "b"
    expected = Mixture((Ingredient(str(a), 2.0, 0, "a"), Ingredient(str(b), 1.0, 0, "b")))
    assert parse(f"{a}=2,{b}=1") == expected
    rows = [{"data": "a.jsonl", "weight": 2}, {"data": "b", "weight": 1}]
    (tmp_path / "mix.json").write_text(json.dumps({"sources": rows}))
    assert parse(str(tmp_path / "mix.json")) == expected
    assert parse(str(a)) is None
    assert parse("hf:org/name") is None
    (tmp_path / "llava.json").write_text("[]")
    assert parse(str(tmp_path / "llava.json")) is None
    assert [s.name for s in parse("x/tables/train.jsonl,y/other,easy-vqa").sources] == [
        "tables",
        "other",
        "easy-vqa",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=x,b=1", "'x' is no weight"),
        ("a=1,b", "only some sources have a weight"),
        ("x/a=1,y/a=2", "two sources are called 'a'"),
        ("a=0,b=0", "every weight is 0"),
        ("a=-1,b=2", "below 0"),
    ],
)
def test_mistakes_are_told(text, said):
    with pytest.raises(ConfigError, match=said):
        parse(text)


def test_a_misspelt_key_of_the_file_is_told(tmp_path):
    (tmp_path / "mix.json").write_text('{"sources": [{"data": "a", "weigth": 2}]}')
    with pytest.raises(ConfigError, match="weight"):
        parse(str(tmp_path / "mix.json"))


def test_temperature_flattens():
    mixture = Mixture((Ingredient("a", name="a"), Ingredient("b", name="b")), temperature=2.0)
    a, b = weights(mixture, [100, 4], {})
    assert a / b == pytest.approx(5)
    assert weights(mixture, [100, 4], {"b": 9.0}) == [0.0, 3.0]
    with pytest.raises(ConfigError, match="no source is called 'c'"):
        weights(mixture, [1, 1], {"c": 1.0})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.data(),
    st.sampled_from(["samples", "tokens"]),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_resumed_anywhere_it_goes_on_as_if_uninterrupted(counts, data, unit, seed, data_shards):
    shares = data.draw(st.lists(st.integers(1, 5), min_size=len(counts), max_size=len(counts)))
    samples = mixed(counts, shares, unit)
    done = data.draw(st.integers(0, 40))
    data_shard = data.draw(st.integers(0, data_shards - 1))

    def fresh():
        turns = Turns(samples, 2, seed)
        turns.split(data_shard, data_shards)
        return turns

    def length(sample):
        return 3 + len(sample.id) * (1 + sample.source.count("a") * 4)

    whole = fresh()
    walk(whole, samples, done, length)
    state = json.loads(json.dumps(whole.state_dict()))
    again = fresh()
    walk(again, samples, 3, length)  # an object that has been used
    again.load_state_dict(state)
    assert walk(again, samples, 30, length) == walk(whole, samples, 30, length)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 9)), min_size=2, max_size=5),
    st.integers(0, 3),
    st.integers(1, 300),
)
def test_shares_by_samples_are_as_weighed_at_any_time(sources, seed, taken):
    samples = mixed([count for count, _ in sources], [weight for _, weight in sources])
    seen = Counter(id[0] for id, _, _ in walk(Turns(samples, 1, seed), samples, taken))
    total = sum(weight for _, weight in sources)
    for name, (_, weight) in zip("abcdef", sources, strict=False):
        assert abs(seen[name] - taken * weight / total) <= len(sources)


def test_shares_by_tokens_count_tokens():
    samples = mixed((6, 6), (1.0, 1.0), "tokens")
    seen = Counter()
    turns = Turns(samples, 1, 0)
    lengths = {"a": 90, "b": 10}
    for id, _, _ in walk(turns, samples, 1000, lambda s: lengths[s.source]):
        seen[id[0]] += lengths[id[0]]
    assert seen["a"] == pytest.approx(seen["b"], abs=100)
    state = turns.state_dict()["sources"]
    assert state["a"]["tokens"] == seen["a"]
    assert state["b"]["samples"] == seen["b"] // 10


def test_each_source_is_passed_whole_before_it_is_seen_again():
    samples = mixed((5, 3), (3.0, 1.0))
    seen = walk(Turns(samples, 2, 1), samples, 80)
    for name, count in (("a", 5), ("b", 3)):
        own = [(id, view) for id, view, _ in seen if id[0] == name]
        for epoch in range(len(own) // (2 * count)):
            assert len(set(own[2 * count * epoch : 2 * count * (epoch + 1)])) == 2 * count


def test_when_nothing_is_left_it_is_told():
    samples = mixed((2,), (1.0,), epochs=(1,))
    turns = Turns(samples, 1, 0)
    walk(turns, samples, 2)
    with pytest.raises(DataError, match="as often as its epochs allow"):
        turns.next()


@pytest.mark.parametrize("data_shards", [1, 2, 3])
def test_data_shards_together_see_every_source_as_one_would(data_shards):
    samples = mixed((6, 4), (1.0, 1.0), epochs=(2, 3))
    seen = Counter()
    for data_shard in range(data_shards):
        turns = Turns(samples, 1, 0)
        turns.split(data_shard, data_shards)
        with suppress(DataError):  # as often as their epochs allow
            for _ in range(100):
                seen.update(id for id, _, _ in walk(turns, samples, 1))
    assert seen == {**{f"a{n}": 2 for n in range(6)}, **{f"b{n}": 3 for n in range(4)}}


def test_a_source_that_is_used_up_leaves_its_part_to_the_others():
    samples = mixed((2, 4), (1.0, 1.0), epochs=(1, 0))
    seen = [id for id, _, _ in walk(Turns(samples, 1, 0), samples, 12)]
    assert sorted(id for id in seen if id[0] == "a") == ["a0", "a1"]
    assert len(seen) == 12


def test_a_stage_weighs_anew():
    samples = mixed((3, 3))
    only = samples.weighed({"b": 1.0})
    assert {id[0] for id, _, _ in walk(Turns(only, 1, 0), only, 9)} == {"b"}
    assert samples.weighed({}).sources == samples.sources


def test_the_order_of_a_single_set_is_as_ever():
    """Turns with one source is data.order alone."""
    from chiasm.data.order import index_at

    samples = part("a", 7)
    turns = Turns(Mixed.of(samples), 1, 5)
    seen = [id for id, _, _ in walk(turns, samples, 21)]
    assert seen == [f"a{index_at(place, 7, 5)}" for place in range(21)]


def test_a_checkpoint_of_other_data_is_refused():
    turns = Turns(mixed((2, 2)), 1, 0)
    with pytest.raises(CheckpointError, match="resume with the data"):
        turns.load_state_dict(Turns(Mixed.of(part("a", 2)), 1, 0).state_dict())


def test_mixed_is_a_sequence():
    samples = mixed((3, 2))
    assert [s.id for s in samples] == ["a0", "a1", "a2", "b0", "b1"]
    assert samples[-1].id == "b1"
    assert [s.id for s in samples[1:4:2]] == ["a1", "b0"]
    kept = samples.keep(lambda s: s.id.endswith("1"))
    assert [s.id for s in kept] == ["a1", "b1"]
    with pytest.raises(IndexError):
        samples[5]
