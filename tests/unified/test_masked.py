"""Masked discrete diffusion: what is masked, what is learned of it, and drawing by it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.batch import IGNORE, Encoded, pack
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import SamplingParams
from chiasm.core.vocab import Vocabulary
from chiasm.generation.image_token_fsm import CODES
from chiasm.generation.maskgit import _least_sure, _schedule
from chiasm.nn.cache import KVCache
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.masked import mask_images
from chiasm.unified.model import Unified

V = Vocabulary(20, 12, pad=0, begin=1, end=2, begin_image=3, end_image=4, mask=19)
CONFIG = UnifiedConfig(
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate_size=48,
    image_objective="masked",
    z_loss=0.0,
)


def model(**changes):
    torch.manual_seed(0)
    made = Unified(dataclasses.replace(CONFIG, **changes), V, columns=3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def conversation(*parts, start=0):
    """Parts are ("text" | "draw" | "see", length): text and drawn images are learned, seen ones
    not. Positions from `start`."""
    random = np.random.default_rng(len(parts) + sum(n for _, n in parts))
    ids, learn = [1], [False]
    for kind, n in parts:
        if kind == "text":
            ids += random.integers(5, 19, n).tolist()
            learn += [True] * n
        else:
            ids += [3, *random.integers(20, 32, n).tolist(), 4]
            learn += [kind == "draw"] * (n + 2)
    T = len(ids)
    targets = np.full(T, IGNORE)
    targets[:-1] = [i if wanted else IGNORE for i, wanted in zip(ids[1:], learn[1:], strict=True)]
    at = np.arange(T) + start
    return Encoded(np.array(ids), targets, at, np.zeros(T, np.int64), at.copy())


PARTS = st.lists(
    st.tuples(st.sampled_from(["text", "draw", "see"]), st.integers(1, 7)), min_size=1, max_size=5
)


def images(ids):
    """(first, one past the last) of each run of codes in a list of ids, codes being 20 and up."""
    runs, start = [], None
    for place, i in enumerate([*ids, 0]):
        if i >= 20 and start is None:
            start = place
        if i < 20 and start is not None:
            runs.append((start, place))
            start = None
    return runs


@settings(max_examples=60, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.integers(0, 10**6))
def test_only_codes_of_drawn_images_are_masked_and_learned(rows, seed):
    torch.manual_seed(seed)
    batch = pack([[conversation(*parts)] for parts in rows])
    masked = mask_images(batch, V)
    for row in range(len(rows)):
        ids, targets = batch.input_ids[row].tolist(), batch.labels[row].tolist()
        new, wanted = masked.input_ids[row].tolist(), masked.labels[row].tolist()
        expected = [IGNORE if t >= 20 else t for t in targets]
        for first, end in images(ids):
            expected[first:end] = [IGNORE] * (end - first)
            hidden = [t for t in range(first, end) if new[t] != ids[t]]
            if targets[first - 1] >= 20:  # drawn
                assert 1 <= len(hidden) <= end - first
            else:
                assert not hidden
            for t in hidden:
                assert new[t] == V.mask
                expected[t] = ids[t]
        assert wanted == expected
        assert [a for a, b in zip(ids, new, strict=True) if b != V.mask] == [
            b for b in new if b != V.mask
        ]


def test_how_many_are_masked_follows_the_cosine():
    torch.manual_seed(0)
    n, rows = 16, 4000
    one = conversation(("draw", n))
    counts = (mask_images(pack([[one]] * rows), V).input_ids == V.mask).sum(1).numpy()
    levels = np.ceil(np.cos(np.pi / 2 * np.random.default_rng(0).random(rows)) * n)
    for low in range(0, n, 3):
        assert abs((counts > low).mean() - (levels > low).mean()) < 0.04
    where = (mask_images(pack([[one]] * rows), V).input_ids == V.mask).float().mean(0)[2 : 2 + n]
    assert where.max() - where.min() < 0.08  # every place as likely


@settings(max_examples=15, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.integers(0, 999), st.booleans())
def test_loss_equals_a_loop_over_the_targets(rows, seed, packed):
    made = model(image_weight=0.3)
    encoded = [conversation(("text", 2), ("draw", 3), *parts) for parts in rows]
    batch = pack([encoded] if packed else [[e] for e in encoded])
    torch.manual_seed(seed)
    loss = made.loss(batch)
    torch.manual_seed(seed)
    masked = mask_images(batch, V)
    with torch.no_grad():
        chances = made.logits(made(masked)).log_softmax(-1)
    sums, counts = {False: 0.0, True: 0.0}, {False: 0, True: 0}
    for row, column in (masked.labels != IGNORE).nonzero().tolist():
        target = int(masked.labels[row, column])
        sums[target >= 20] -= float(chances[row, column, target])
        counts[target >= 20] += 1
    hidden = int((masked.input_ids == V.mask).sum())
    assert counts[True] == hidden == loss.numbers()["image"][1]
    assert loss.numbers()["text"][1] == counts[False]
    assert loss.count == sum(counts.values())
    assert loss.numbers()["image"][0] == pytest.approx(sums[True], rel=1e-4)
    assert loss.numbers()["text"][0] == pytest.approx(sums[False], rel=1e-4)
    assert float(loss.sum.detach()) == pytest.approx(sums[False] + 0.3 * sums[True], rel=1e-4)


@pytest.mark.parametrize("rope", ["1d", "2d"])
@torch.no_grad()
def test_codes_see_their_whole_image_and_text_sees_nothing_later(rope):
    made = model(rope=rope).eval()
    batch = pack([[conversation(("text", 3), ("draw", 6), ("text", 3))]])
    first = batch.input_ids[0].tolist().index(3) + 1
    base = made(batch)[0]
    changed = batch.input_ids.clone()
    changed[0, first + 5] = 20 + (changed[0, first + 5] - 19) % 12
    moved = (made(dataclasses.replace(batch, input_ids=changed))[0] - base).abs().amax(-1) > 1e-6
    assert not moved[:first].any()
    assert moved[first:].all()


@pytest.mark.parametrize("rope", ["1d", "2d"])
@torch.no_grad()
def test_cached_painting_equals_one_pass(rope):
    """Prompt, two passes that are forgotten, the finished image with its end, one more word."""
    made = model(rope=rope).eval()
    whole = pack([[conversation(("text", 3), ("draw", 6), ("text", 2))]])
    begin = whole.input_ids[0].tolist().index(3)

    def part(start, end, ids=None):
        columns = {
            name: getattr(whole, name)[:, start:end]
            for name in (
                "input_ids",
                "labels",
                "segment_ids",
                "block_ids",
                "branch_ids",
                "position_ids",
            )
        }
        columns["labels"] = torch.full_like(columns["input_ids"], IGNORE)
        return dataclasses.replace(whole, **columns | ({} if ids is None else {"input_ids": ids}))

    cache = made.new_cache()
    assert isinstance(cache, KVCache)
    found = [made(part(0, begin), cache)]
    for filling in (V.mask, 25):
        ids = whole.input_ids[:, begin : begin + 7].clone()
        ids[:, 1:] = filling
        made(part(begin, begin + 7, ids), cache)
        cache.forget(begin)
    found.append(made(part(begin, begin + 8), cache))
    found += [made(part(t, t + 1), cache) for t in range(begin + 8, whole.input_ids.shape[1])]
    assert (torch.cat(found, 1) - made(part(0, whole.input_ids.shape[1]))).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 999))
def test_passes_unmask_by_the_cosine_the_surest_first(n, steps, seed):
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    sure = torch.rand(2, n)
    unknown = torch.rand(2, n) < 0.7
    count = unknown.sum(1)
    masked = torch.from_numpy(_schedule([[CODES] * n for n in count.tolist()], steps))
    for step in range(steps):
        before = unknown
        done = (step + 1) / steps
        unknown = _least_sure(sure, before, masked[step], 0.0, SamplingParams(), random)
        for row in range(2):
            left = 0 if done == 1 else math.floor(math.cos(math.pi / 2 * done) * count[row])
            left = max(0, min(left, int(before[row].sum()) - 1))
            assert int(unknown[row].sum()) == left
            told = before[row] & ~unknown[row]
            assert not (unknown[row] & ~before[row]).any()
            if told.any() and left:
                assert sure[row][told].min() >= sure[row][unknown[row]].max()


def test_the_default_objective_knows_no_mask_and_the_masked_one_needs_it():
    assert UnifiedConfig().image_objective == "next"
    plain = dataclasses.replace(V, mask=None)
    with pytest.raises(ConfigError, match=r"hub\.unified\.build"):
        Unified(CONFIG, plain)
    with pytest.raises(ConfigError, match="row_ends"):
        dataclasses.replace(CONFIG, row_ends=True)
