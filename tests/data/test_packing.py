"""Full rows: the knapsack by its properties, the stream by what it yields and where it resumes."""

import itertools
import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.batch import Encoded
from chiasm.core.errors import DataError
from chiasm.core.image import header_size
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.objectives import chat
from chiasm.data.packing import Budget, Size, fill, usefulness
from chiasm.data.stream import KnapsackStream, SampleStream

SIZES = st.lists(st.builds(Size, st.integers(1, 130), st.integers(0, 60)), max_size=60)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(64, 128), st.one_of(st.none(), st.integers(32, 64)))
def test_rows_hold_every_sample_once_and_keep_to_the_budget(sizes, tokens, patches):
    rows, left = fill(sizes, Budget(tokens, patches))
    placed = [i for row in rows for i in row]
    assert sorted(placed + left) == list(range(len(sizes)))
    for row in rows:
        if len(row) > 1:
            assert sum(sizes[i].tokens for i in row) <= tokens
            assert patches is None or sum(sizes[i].patches for i in row) <= patches


def mixture(kind, n, random):
    """Lengths as data sets have them: text tokens log-normal, images of one size or in tiles."""
    if kind == "llava":  # one image of 576 tokens with a conversation, or text alone
        text = random.lognormal(5.2, 0.7, n).astype(int).clip(20, 1400)
        seen = np.where(random.random(n) < 0.94, 576, 0)
    elif kind == "cauldron":  # one to four images of 64 tokens, short questions
        text = random.lognormal(4.3, 0.9, n).astype(int).clip(8, 1500)
        seen = 64 * random.integers(1, 5, n)
    elif kind == "tiles":  # up to 17 tiles of 64 tokens
        text = random.lognormal(4.8, 0.8, n).astype(int).clip(8, 1500)
        seen = 64 * random.choice([1, 5, 7, 10, 13, 17], n)
    else:  # text alone, two thirds of it
        text = random.lognormal(5.5, 1.0, n).astype(int).clip(8, 3000)
        seen = np.where(random.random(n) < 0.33, 256, 0)
    return [Size(int(t + s), int(4 * s)) for t, s in zip(text, seen, strict=True)]


@pytest.mark.parametrize("kind", ["llava", "cauldron", "tiles", "mixed"])
@pytest.mark.parametrize("tokens", [4096, 8192])
def test_97_percent_of_the_tokens_are_useful_and_rows_cost_alike(kind, tokens):
    """Over windows that hand on what did not fit; samples end to end are the comparison."""
    random = np.random.default_rng(0)
    budget, waiting, useful, loads = Budget(tokens), [], [], []
    for _ in range(4):
        sizes = waiting + mixture(kind, 512, random)
        rows, left = fill(sizes, budget)
        useful.append(usefulness(rows, sizes, budget))
        loads += [sum(sizes[i].patches for i in row) for row in rows]
        waiting = [sizes[i] for i in left]
        assert sum(s.tokens for s in waiting) < 6 * tokens
    assert min(useful) >= 0.97, useful
    if kind != "mixed":  # a text of 3,000 tokens leaves no room for images, whatever is done
        assert np.std(loads) < 0.25 * np.mean(loads)
    sizes = mixture(kind, 2048, random)
    rows, used = [[]], 0
    for i, size in enumerate(sizes):
        if used + size.tokens > tokens:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += size.tokens
    assert usefulness(rows, sizes, budget) < min(useful)


def test_the_number_of_patches_is_kept_to_as_well():
    sizes = mixture("cauldron", 512, np.random.default_rng(1))
    rows, _ = fill(sizes, Budget(4096, 6000))
    assert all(sum(sizes[i].patches for i in row) <= 6000 for row in rows)


class Words:
    """A processor of samples whose text is their length; `bad` ones cannot be measured."""

    def _length(self, sample):
        text = sample.turns[0].text
        if text == "bad":
            raise DataError("bad")
        return int(text)

    def measure(self, sample):
        return Size(self._length(sample))

    def encode(self, sample):
        zeros = np.zeros(self._length(sample), np.int64)
        return Encoded(zeros, zeros, np.arange(len(zeros)), zeros, zeros, name=sample.id)


def samples(n=60):
    lengths = np.random.default_rng(0).integers(4, 40, n)
    texts = ["bad" if i == 7 else str(length) for i, length in enumerate(lengths)]
    return [Sample((user(t), assistant("x")), f"s{i}") for i, t in enumerate(texts)]


def stream(kind=KnapsackStream, **more):
    return kind(samples(), [chat], Words(), 128, 0, **more)


def test_the_stream_sees_every_sample_once_an_epoch_in_full_rows():
    made = stream(window=64)
    batches = list(itertools.islice(made, 60))
    assert np.mean([batch.tokens / 128 for batch in batches]) > 0.97
    names = [name for batch in batches for name in batch.names]
    still = [place for row in made._rows for place in row] + [p for p, _ in made._waiting]
    names += [made.samples[made.turns.at(*place).index].id for place in still]
    seen = {name: names.count(name) for name in names}
    assert len(seen) == 59
    assert max(seen.values()) - min(seen.values()) <= 1


def test_the_stream_resumes_in_the_middle_of_a_window():
    whole = stream(window=48)
    names = [batch.names for batch in itertools.islice(whole, 40)]
    for cut in (1, 7, 23):
        first = stream(window=48)
        list(itertools.islice(first, cut))
        state = json.loads(json.dumps(first.state_dict()))
        again = stream(window=48)
        again.load_state_dict(state)
        assert [b.names for b in itertools.islice(again, 40 - cut)] == names[cut:]


def test_data_shards_share_the_order():
    found = []
    for data_shard in range(2):
        made = stream(window=30)
        made.split(data_shard, 2)
        found.append({n for b in itertools.islice(made, 4) for n in b.names})
    assert found[0] != found[1]


def test_the_order_of_old_streams_is_the_same_as_ever():
    names = [batch.names for batch in itertools.islice(stream(SampleStream), 3)]
    flat = [name for row in names for name in row]
    order = np.random.default_rng((0, 0)).permutation(60)
    assert flat == [f"s{i}" for i in order if i != 7][: len(flat)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("turned", [1, 6])
def test_the_header_says_what_decoding_finds(tmp_path, kind, turned):
    image = PIL.Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (300, 401, 3), dtype=np.uint8)
    )
    exif = PIL.Image.Exif()
    exif[0x0112] = turned
    file = tmp_path / f"a.{kind.lower()}"
    image.save(file, kind, **({} if kind == "GIF" else {"exif": exif}))
    assert header_size(file) == Image(file).load().size == Image(file).size()
    assert Image(file.read_bytes()).size() == Image(file).size()


def test_an_image_without_a_size_is_refused_as_when_it_is_read(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        Image(file).size()
