"""The switches of the unified transformer, each against what it promises exactly."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ChameleonConfig
from transformers.models.chameleon import modeling_chameleon as chameleon

from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.errors import ConfigError
from chiasm.core.vocab import Vocabulary
from chiasm.nn.attention import TokenIndex, attention, full_layout, packed_layout
from chiasm.nn.block import Attention, Block
from chiasm.nn.norm import HeadRMSNorm
from chiasm.nn.rope import rotate, rotation, rotation_2d
from chiasm.train.optim import make_optimizer, set_trained
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.image_layout import given_images_whole, grid_positions
from chiasm.unified.local_heads import look_nearby
from chiasm.unified.model import Unified

VOCABULARY = Vocabulary(text=20, codes=12, pad=0, begin=1, end=2, begin_image=3, end_image=4)
CONFIG = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
COLUMNS = 3
SWITCHES = [
    {"qk_norm": "rms"},
    {"qk_norm": False},
    {"post_norm": True},
    {"attention_softcap": 5.0},
    {"logit_softcap": 3.0},
    {"image_attention": "bidirectional"},
    {"rope": "2d"},
    {"tied": True},
    {"mup_base_width": 16},
    {"post_norm": True, "rope": "2d", "image_attention": "bidirectional", "tied": True},
]


def model(**changes):
    torch.manual_seed(0)
    made = Unified(dataclasses.replace(CONFIG, **changes), VOCABULARY, COLUMNS)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def tokens(*parts, drawn=False, start=0):
    """A causal sample: numbers are text, "image" is begin, six codes, end. All are targets, of an
    image only when it is drawn."""
    ids, learn = [], []
    random = np.random.default_rng(len(parts))
    for part in parts:
        if part == "image":
            ids += [3, *random.integers(20, 32, 6).tolist(), 4]
            learn += [True] + [drawn] * 6 + [True]
        else:
            ids.append(part)
            learn.append(True)
    ids = np.array(ids)
    targets = np.full(len(ids), IGNORE)
    targets[:-1] = np.where(learn[1:], ids[1:], IGNORE)
    place = np.arange(len(ids)) + start
    return Encoded(ids, targets, place.copy(), np.zeros(len(ids), np.int64), place)


def layout(length):
    zero = torch.zeros(1, length, dtype=torch.long)
    return packed_layout(TokenIndex(zero, torch.arange(length)[None], zero))


@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_rms_qk_norm_hides_the_scale_of_the_query_matrix(scale):
    torch.manual_seed(0)
    part, x = Attention(32, 4, 2, "rms"), torch.randn(1, 6, 32)
    torch.nn.init.normal_(part.q_proj.weight)
    turn = rotation(torch.arange(6)[None], 8)
    before = part(x, turn, layout(6))
    with torch.no_grad():
        part.q_proj.weight.mul_(scale)
    torch.testing.assert_close(part(x, turn, layout(6)), before, atol=1e-4, rtol=1e-4)


def test_head_rms_norm_equals_numpy():
    torch.manual_seed(0)
    norm, x = HeadRMSNorm(3, 8), torch.randn(2, 5, 3, 8)
    torch.nn.init.normal_(norm.weight)
    a = x.double().numpy()
    expected = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * norm.weight.detach().numpy()
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_a_reordered_branch_keeps_the_size_of_its_norm():
    """RMS of what the feed-forward adds is its norm's weight γ, also when W_down grows × 100."""
    torch.manual_seed(0)
    x, turn, gamma = torch.randn(1, 6, 32), rotation(torch.arange(6)[None], 8), 0.7

    def added(post_norm, growth):
        torch.manual_seed(1)
        block = Block(32, 4, 2, 48, True, 0.0, post_norm=post_norm)
        block.post_attention_layernorm.weight.fill_(gamma)
        block.self_attn.o_proj.weight.zero_()  # leaves the feed-forward's branch alone
        block.mlp.down_proj.weight.mul_(10 * growth)  # far above the norm's epsilon
        return (block(x, turn, layout(6)) - x).square().mean(-1).sqrt()

    torch.testing.assert_close(added(True, 1), torch.full((1, 6), gamma), atol=1e-3, rtol=0)
    torch.testing.assert_close(added(True, 100), torch.full((1, 6), gamma), atol=1e-3, rtol=0)
    assert added(False, 100).min() > 50 * added(False, 1).max() / 10


@torch.no_grad()
@pytest.mark.parametrize("post_norm", [False, True])
def test_block_equals_chameleons(post_norm):
    torch.manual_seed(0)
    config = ChameleonConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        swin_norm=post_norm,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    kind = chameleon.ChameleonSwinDecoderLayer if post_norm else chameleon.ChameleonDecoderLayer
    theirs = kind(config, 0).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, 0.2)
    ours = Block(32, 4, 2, 48, True, 0.0, post_norm=post_norm)
    ours.load_state_dict(theirs.state_dict())
    x, position = torch.randn(1, 9, 32), torch.arange(9)[None]
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    turn = chameleon.ChameleonRotaryEmbedding(config)(x, position)
    expected = theirs(x, attention_mask=mask, position_ids=position, position_embeddings=turn)
    expected = expected[0] if isinstance(expected, tuple) else expected
    got = ours(x, rotation(position, 8), layout(9))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_softcaps_are_gemmas():
    made, cap = model(logit_softcap=2.0), 2.0
    plain = model()
    batch = pack([[tokens(1, 5, "image", 7)]])
    hidden = plain(batch)
    torch.testing.assert_close(
        made.logits(made(batch)), cap * torch.tanh(plain.logits(hidden) / cap)
    )
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
    logits = 3.0 * torch.tanh(8**-0.5 * q @ k.mT / 3.0)
    torch.testing.assert_close(
        attention(q, k, v, full_layout(), softcap=3.0), logits.softmax(-1) @ v
    )
    part = Attention(32, 4, 2, False, softcap=0.5)
    torch.nn.init.normal_(part.q_proj.weight)
    x, turn = torch.randn(1, 6, 32), rotation(torch.arange(6)[None], 8)
    capped = part(x, turn, layout(6))
    part.softcap = None
    assert (capped - part(x, turn, layout(6))).abs().max() > 1e-3


def test_z_loss_gradient_through_the_whole_head():
    """The head's gradient gains 2λ·logZ·softmax ⊗ hidden, and nothing else changes in it."""
    batch, weight = pack([[tokens(1, 5, 9, 11)]]), 0.3
    grads = []
    for z in (0.0, weight):
        made = model(z_loss=z)
        made.loss(batch).sum.backward()
        grads.append(made.lm_head.weight.grad)
    made = model()
    with torch.no_grad():
        hidden = made(batch)[batch.labels != IGNORE]
        logits = made.logits(hidden)
        slope = 2 * weight * logits.logsumexp(1, keepdim=True) * logits.softmax(1)
    torch.testing.assert_close(grads[1] - grads[0], slope.T @ hidden, atol=1e-4, rtol=1e-3)


def rows_of_sight(block):
    return (block[None, :] <= block[:, None]).int().tolist()


def test_given_images_are_seen_whole_and_drawn_ones_are_not():
    given, drawn = tokens(1, "image", 5, "image", 6), tokens(7, "image", drawn=True)
    batch = pack([[given, drawn]])
    block = given_images_whole(batch, VOCABULARY)[0]
    expected = batch.block_ids[0].clone()
    expected[2:8], expected[11:17] = 2, 11
    assert torch.equal(block, expected)
    sight = torch.tensor(rows_of_sight(block[: len(given)]))
    assert sight[2:8, 2:8].all()  # each other
    assert not sight[1, 2:].any()  # what stands before sees nothing of it
    assert sight[8, :9].all()


@torch.no_grad()
def test_later_codes_reach_earlier_ones_in_given_images_only():
    made = model(image_attention="bidirectional")
    for drawn, reaches in ((False, True), (True, False)):
        a = tokens(1, "image", 6, drawn=drawn)
        ids = a.input_ids.copy()
        ids[7] = 20 + (ids[7] - 19) % 12  # the last code
        b = dataclasses.replace(a, input_ids=ids)
        x, y = (made(pack([[s]]))[0] for s in (a, b))
        assert bool((x[2] != y[2]).any()) is reaches
        assert torch.equal(x[:2], y[:2])


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50))
def test_2d_rotation_depends_on_both_distances_only(a, b):
    torch.manual_seed(a)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)

    def score(row, column):
        there = [torch.tensor([[x]]) for x in (row, column)]
        here = [torch.tensor([[x]]) for x in (row + 3, column - 2)]
        return (rotate(q, *rotation_2d(*here, 16)) * rotate(k, *rotation_2d(*there, 16))).sum()

    torch.testing.assert_close(score(a, b), score(0, 0), atol=1e-3, rtol=1e-3)
    same = torch.tensor([[a, b]])
    for x, y in zip(rotation_2d(same, same, 16), rotation(same, 16), strict=True):
        assert torch.equal(x, y)


def test_grid_positions_equal_a_loop():
    samples = [tokens(1, 5, "image", 7, "image"), tokens(6, "image", 5)]
    batch = pack([samples, [tokens("image", 9)]])
    row, column = grid_positions(batch, VOCABULARY, COLUMNS)
    for b, t in np.ndindex(*batch.input_ids.shape):
        expected = [int(batch.position_ids[b, t])] * 2
        if batch.input_ids[b, t] >= 20:
            n = 0
            while batch.input_ids[b, t - n - 1] >= 20:
                n += 1
            first = int(batch.position_ids[b, t]) - n
            expected = [first + n // COLUMNS, first + n % COLUMNS]
        assert [int(row[b, t]), int(column[b, t])] == expected


def slices(batch, *cuts):
    """The batch in pieces of columns."""
    names = ("input_ids", "labels", "segment_ids", "block_ids", "branch_ids", "position_ids")
    edges = [0, *cuts, batch.input_ids.shape[1]]
    return [
        Batch(**{n: getattr(batch, n)[:, a:b] for n in names}) for a, b in itertools.pairwise(edges)
    ]


@torch.no_grad()
@pytest.mark.parametrize("switch", SWITCHES)
def test_cached_equals_uncached(switch):
    """Prompt at once, then token by token through a drawn image; a row leaves on the way."""
    made = model(**switch)
    samples = [tokens(1, "image", 5 + n, 9) for n in range(2)]
    drawn = [tokens("image", 8, drawn=True, start=len(samples[0])) for _ in range(2)]
    whole = pack([[_joined(a, b)] for a, b in zip(samples, drawn, strict=True)])
    expected = made(whole)
    length = len(samples[0])
    cache, found = made.new_cache(), []
    for number, piece in enumerate(slices(whole, *range(length, whole.input_ids.shape[1]))):
        if number == 4:
            cache.select(torch.tensor([1]))
        if number >= 4:
            names = (
                "input_ids",
                "labels",
                "segment_ids",
                "block_ids",
                "branch_ids",
                "position_ids",
            )
            piece = Batch(**{n: getattr(piece, n)[1:] for n in names})
        found.append(made(piece, cache)[-1])
    torch.testing.assert_close(torch.cat(found), expected[1], atol=1e-5, rtol=1e-5)


def _joined(a, b):
    names = ("input_ids", "labels", "block_ids", "branch_ids", "position_ids")
    return Encoded(*(np.concatenate([getattr(a, n), getattr(b, n)]) for n in names))


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_the_model_and_trains_every_parameter(switch):
    plain, made = model(), model(**switch)
    batch = pack([[tokens(1, "image", 5, 9), tokens(6, "image", drawn=True)]])
    made.train().loss(batch).sum.backward()
    assert all(p.grad is not None for p in made.parameters())
    owned = [p for part in made.groups().values() for p in part.parameters()]
    assert sorted(map(id, owned)) == sorted(map(id, made.parameters()))
    with torch.no_grad():
        a, b = (m.eval().logits(m(batch)) for m in (plain, made))
    assert not torch.allclose(a, b, atol=1e-4)


def test_a_tied_head_is_the_embedding():
    made = model(tied=True)
    assert "lm_head.weight" not in made.state_dict()
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(made.logits(hidden), hidden @ made.embed_tokens.weight.T)


def test_mup_at_its_base_width_is_off():
    torch.manual_seed(0)
    plain = Unified(CONFIG, VOCABULARY)
    torch.manual_seed(0)
    based = Unified(dataclasses.replace(CONFIG, mup_base_width=32), VOCABULARY)
    for a, b in zip(plain.parameters(), based.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = pack([[tokens(1, 5, "image", 7)]])
    assert torch.equal(plain.logits(plain(batch)), based.logits(based(batch)))


def test_mup_rates_by_parameter():
    made = model(hidden_size=64, heads=8, kv_heads=8, intermediate_size=96, mup_base_width=16)
    for optimizer, divided in (("adamw", 4.0), ("muon", 2.0)):
        stage = Stage("s", 1, {"embedding": 1.0, "transformer": 1.0}, optimizer=optimizer)
        stage = dataclasses.replace(stage, muon_scale=1.0, autocast="none")
        set_trained(made, stage)
        rate = {id(p): g["peak"] for g in make_optimizer(made, stage).groups for p in g["params"]}
        assert len(rate) == len(list(made.parameters()))
        for name, parameter in made.named_parameters():
            hidden = "_proj" in name
            assert rate[id(parameter)] == (1 / divided if hidden else 1.0), name


def test_mup_keeps_what_a_step_changes_and_the_standard_way_does_not():
    """Coordinate check (2203.03466, section D.1): how far a few steps at one rate move the logits,
    at 1, 4 and 16 times the width."""
    batch = pack([[tokens(1, 5, "image", 7, "image", 9, drawn=True)]])

    def moved(width, mup_base):
        config = UnifiedConfig(
            hidden_size=width,
            layers=2,
            heads=width // 8,
            kv_heads=width // 8,
            intermediate_size=2 * width,
            mup_base_width=mup_base,
        )
        torch.manual_seed(0)
        made = Unified(config, VOCABULARY)
        stage = Stage("s", 1, {"embedding": 5e-3, "transformer": 5e-3}, autocast="none")
        set_trained(made, stage)
        optimizer = make_optimizer(made, stage)
        before = made.logits(made(batch)).detach()
        for _ in range(3):
            optimizer.zero_grad()
            loss = made.loss(batch)
            (loss.sum / loss.count).backward()
            optimizer.step()
        return float((made.logits(made(batch)) - before).detach().square().mean().sqrt())

    widths = (16, 64, 256)
    standard, mup = ([moved(w, base) for w in widths] for base in (0, 16))
    assert standard[0] == pytest.approx(mup[0])
    assert standard[2] > 4 * standard[0]
    assert max(mup) < 2 * min(mup)


def test_impossible_heads_are_refused():
    with pytest.raises(ConfigError, match="heads must divide"):
        UnifiedConfig(hidden_size=100, heads=6)
    with pytest.raises(ConfigError, match="known width"):
        Unified(dataclasses.replace(CONFIG, rope="2d"), VOCABULARY)


@pytest.mark.parametrize(
    ("objective", "distances"), [("next", (1, 4, 3, 5)), ("masked", (1, 4, -1, -4))]
)
@pytest.mark.parametrize("head", range(4))
def test_local_heads_find_their_neighbour_in_two_dimensions(objective, distances, head):
    columns, theta, distance = 4, 100.0, distances[head]
    config = UnifiedConfig(
        hidden_size=64,
        layers=2,
        heads=4,
        kv_heads=4,
        intermediate_size=64,
        rope="2d",
        image_objective=objective,
    )
    made = Unified(config, dataclasses.replace(VOCABULARY, mask=9), columns)
    look_nearby(made, columns)
    attention = made.layers[0].self_attn
    here = torch.arange(16)
    grid = (here[None] // columns, here[None] % columns)
    turn = rotation_2d(*grid, 16, theta)
    key = rotate(attention.k_norm.bias[head].expand(1, 16, 1, 16), *turn)
    query = rotate(attention.q_norm.bias[head].expand(1, 16, 1, 16), *turn)[:, 10:11]
    assert int((key * query).sum(-1).flatten().argmax()) == 10 - distance
