"""Projectors that reach between the language model's layers: DeepStack, gated cross-attention."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chiasm.core.batch import IGNORE, pack
from chiasm.core.config import from_dict, to_dict
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, assistant, user
from chiasm.generation.generator import Generator
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm.config import (
    AveragePoolConfig,
    CrossAttentionConfig,
    DeepStackConfig,
    MLLMConfig,
    MLPConfig,
    PerceiverConfig,
)
from chiasm.mllm.projectors.cross_attention import GatedBlock
from chiasm.train.optim import set_trained
from chiasm.train.recompute import recomputed
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions, ViTConfig

LEVELS = ViTConfig(
    image_size=24, patch_size=4, width=16, layers=3, heads=2, max_patches=12, chosen=(1, 2, 3)
)
DEEP = DeepStackConfig(levels=3, each=MLPConfig(merge=2))
CROSS = CrossAttentionConfig((0, 2), 2, PerceiverConfig(latents=3, layers=1, heads=2))
GRIDDED = CrossAttentionConfig((1,), 4, AveragePoolConfig(size=2))
KINDS = {"deepstack": DEEP, "cross": CROSS, "cross-grid": GRIDDED}
every_kind = pytest.mark.parametrize("projector", KINDS.values(), ids=KINDS)
both_families = pytest.mark.parametrize("family", ["llama", "gpt2"])


def build(toy, projector, family="llama", opened=True):
    """opened: gates of cross-attention away from zero."""
    vision = LEVELS if isinstance(projector, DeepStackConfig) else None
    model, processor = toy.build(family, vision, projector=projector)
    if opened:
        with torch.no_grad():
            for block in getattr(model.projector, "blocks", ()):
                block.gate.fill_(0.8)
                block.mlp_gate.fill_(-0.6)
    return model, processor


def packed(toy, processor):
    return pack([[processor.encode(s) for s in toy.samples()]])


@every_kind
def test_configs_survive_json(projector):
    whole = MLLMConfig(projector=projector)
    assert from_dict(MLLMConfig, to_dict(whole)) == whole


@every_kind
@both_families
def test_packed_loss_and_gradients_equal_separate_ones(toy, projector, family):
    model, processor = build(toy, projector, family)
    encoded = [processor.encode(s) for s in toy.samples()]

    def gradients():
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    loss = model.loss(pack([[encoded[2], encoded[0]], [encoded[1], encoded[3]]]))
    loss.sum.backward()
    together = gradients()
    alone = [model.loss(pack([[e]])) for e in encoded]
    torch.stack([one.sum for one in alone]).sum().backward()
    assert loss.sum.item() == pytest.approx(sum(one.sum.item() for one in alone), rel=1e-5)
    for name, gradient in gradients().items():
        torch.testing.assert_close(together[name], gradient, atol=1e-4, rtol=1e-3, msg=name)
    own = {name for name in together if name.startswith("projector.")}
    assert own == {f"projector.{n}" for n, _ in model.projector.named_parameters()}
    assert all(together[n].abs().max() > 0 for n in own if not n.endswith("k_proj.bias"))
    assert together["vision.patch_embedding.weight"].abs().max() > 0


@torch.no_grad()
@every_kind
@both_families
def test_other_samples_and_their_images_change_exactly_nothing(toy, projector, family):
    model, processor = build(toy, projector, family)
    encoded = [processor.encode(s) for s in toy.samples()]
    batch = pack([encoded])
    before = model(batch)
    for which in range(4):
        e = encoded[which]
        patches = None if e.image_patches is None else e.image_patches + 1
        ids = np.where(e.input_ids == model.image_token, e.input_ids, (e.input_ids + 5) % 200)
        changed = [
            *encoded[:which],
            replace(e, input_ids=ids, image_patches=patches),
            *encoded[which + 1 :],
        ]
        after = model(pack([changed]))
        mine = batch.segment_ids == which
        assert torch.equal(before[~mine], after[~mine])
        assert not torch.equal(before[mine], after[mine])


@torch.no_grad()
@every_kind
def test_an_image_reaches_later_text_of_its_sample_only(toy, projector):
    model, processor = build(toy, projector)
    two = processor.encode(toy.samples()[3])
    second = int(two.image_grids[0].prod())
    patches = two.image_patches.copy()
    patches[second:] += 1  # the later image, asked about in the second turn
    before, after = model(pack([[two]])), model(pack([[replace(two, image_patches=patches)]]))
    slots = np.flatnonzero(two.input_ids == model.image_token)
    first = int(slots[-model.projector.tokens(tuple(two.image_grids[1]))])
    assert torch.equal(before[0, :first], after[0, :first])
    assert not torch.isclose(before[0, first:], after[0, first:]).all(-1).any()


@torch.no_grad()
def test_questions_as_branches_equal_questions_asked_separately(toy):
    model, processor = build(toy, CROSS)
    together = toy.samples()[2]
    turns = together.turns
    single = [Sample(turns[:2]), Sample((user(turns[0].content[0], "is it?"), turns[3]))]
    whole = model.loss(pack([[processor.encode(together)]]))
    alone = sum(model.loss(pack([[processor.encode(s)]])).sum.item() for s in single)
    assert whole.sum.item() == pytest.approx(alone, rel=1e-5)


@torch.no_grad()
@both_families
def test_closed_gates_leave_the_language_model_as_it_is(toy, family):
    """Every token's state is bit for bit that of the language model over the same embeddings."""
    model, processor = build(toy, CROSS, family, opened=False)
    batch = packed(toy, processor)
    before = model(batch)
    model.projector.between = lambda *_: {}
    assert torch.equal(before, model(batch))


@torch.no_grad()
def test_text_alone_is_the_language_models_own_whatever_it_is_packed_with(toy):
    model, processor = build(toy, CROSS)
    plain, _ = toy.build()
    text = processor.encode(toy.samples()[1])
    company = pack([[processor.encode(toy.samples()[0]), text]])
    hidden = model(company)[company.segment_ids == 1]
    torch.testing.assert_close(hidden, plain(pack([[text]]))[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_gated_block_is_loops():
    torch.manual_seed(0)
    block = GatedBlock(8, 2)
    block.gate.fill_(0.5)
    block.mlp_gate.fill_(-0.7)
    x, k, v = torch.randn(1, 4, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    mask = torch.rand(1, 4, 5) < 0.5
    mask[0, 2] = False
    p = {name: value.double().numpy() for name, value in block.named_parameters()}

    def norm(row, name):
        row = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
        return row * p[f"{name}.weight"] + p[f"{name}.bias"]

    expected = x[0].double().numpy().copy()
    for t in (0, 1, 3):
        q = p["q_proj.weight"] @ norm(expected[t], "norm")
        mixed = np.zeros(8)
        for head in (slice(0, 4), slice(4, 8)):
            score = {
                m: np.exp(q[head] @ k[0, m, head].double().numpy() / 2)
                for m in range(5)
                if mask[0, t, m]
            }
            for m, s in score.items():
                mixed[head] += s / sum(score.values()) * v[0, m, head].double().numpy()
        expected[t] += np.tanh(0.5) * (p["out_proj.weight"] @ mixed)
        inner = np.maximum(p["up.weight"] @ norm(expected[t], "mlp_norm"), 0) ** 2
        expected[t] += np.tanh(-0.7) * (p["down.weight"] @ inner)
    result = block(x, (k, v), mask)[0].double()
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_deepstack_adds_each_level_before_its_layer(toy):
    """Against the language model's layers called one by one."""
    model, processor = build(toy, DEEP)
    one = processor.encode(Sample((user(toy.samples()[0].images[0], "what?"), assistant("red"))))
    batch = pack([[one]])
    slots = batch.input_ids[0] == model.image_token
    features = model.vision(batch.image_patches, batch.image_grids)
    levels = [
        level(features[:, 16 * i : 16 * (i + 1)], batch.image_grids)
        for i, level in enumerate(model.projector.levels)
    ]
    x = model.language.get_input_embeddings()(batch.input_ids.masked_fill(slots, 0))
    x[0, slots] = levels[2]
    backbone = model.backbone
    from chiasm.nn.attention import TokenIndex, packed_layout

    turn = backbone.rotary_emb(x, position_ids=batch.position_ids)
    layout = packed_layout(TokenIndex(batch.segment_ids, batch.block_ids, batch.branch_ids))
    for number, layer in enumerate(backbone.layers):
        if number in (1, 2):
            x[0, slots] += levels[number - 1]
        x = layer(x, position_embeddings=turn, layout=layout)
    torch.testing.assert_close(model(batch), backbone.norm(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_chosen_blocks_of_our_encoder_are_its_states(toy):
    model, processor = build(toy, DEEP)
    batch = pack([[processor.encode(toy.samples()[0])]])
    tower = model.vision
    features = tower(batch.image_patches, batch.image_grids)
    for number in (1, 2, 3):
        tower.config = replace(LEVELS, layers=number, chosen=(number,))
        expected = tower(batch.image_patches, batch.image_grids)
        assert torch.equal(features[:, 16 * (number - 1) : 16 * number], expected)


@torch.no_grad()
@every_kind
@both_families
def test_cached_replies_equal_uncached_ones(toy, projector, family):
    """Several samples at once, of which some end early, against a forward of everything a token."""
    model, processor = build(toy, projector, family)
    samples = toy.samples()
    asked = [
        Sample(samples[0].turns[:1]),
        Sample(samples[1].turns[:1]),
        Sample(samples[3].turns[:3]),
    ]
    asked += [Sample((user(samples[2].images[0], word),)) for word in ("what?", "is it?")]
    said = {n: [] for n in range(len(asked))}
    processor.template.decode = lambda ids: " ".join(map(str, ids))
    for number, piece in Generator(model, processor)(asked, SamplingParams(max_tokens=6)):
        said[number].append(piece.text)
    for number, sample in enumerate(asked):
        ((encoded, _),) = processor.prompts([sample])
        written: list[int] = []
        while len(written) < 6:
            count = len(encoded) + len(written)
            grown = replace(
                encoded,
                input_ids=np.concatenate([encoded.input_ids, np.array(written, np.int64)]),
                labels=np.full(count, IGNORE),
                block_ids=np.arange(count),
                position_ids=np.arange(count),
                branch_ids=np.zeros(count, np.int64),
            )
            logits = model.logits(model(pack([[grown]]))[0, -1])
            logits[model.image_token] = float("-inf")
            token = int(logits.argmax())
            if token in processor.template.stop:
                break
            written.append(token)
        assert "".join(said[number]) == " ".join(map(str, written))


@every_kind
def test_it_is_saved_and_loaded(toy, projector, tmp_path):
    model, processor = build(toy, projector)
    batch = packed(toy, processor)
    hub.save(tmp_path, model, processor, toy.config(projector=projector))
    again, other = load(tmp_path)
    assert again.projector.config == projector
    assert torch.equal(packed(toy, other).input_ids, batch.input_ids)
    with torch.no_grad():
        assert torch.equal(again(batch), model(batch))


@every_kind
@pytest.mark.parametrize("trained", [("projector",), ("vision", "projector", "language_model")])
def test_cost_is_what_torch_counts(toy, projector, trained):
    model, processor = build(toy, projector)
    encoded = processor.encode(toy.samples()[0])
    batch = pack([[replace(encoded, labels=np.full(len(encoded), 5))]])
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(trained, 1.0)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    # The cost model counts attention twice where gradients pass through; it costs three times.
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@every_kind
def test_it_learns_and_recomputes(toy, projector):
    model, processor = build(toy, projector, opened=False)
    batch = packed(toy, processor)
    set_trained(model, Stage("s", 1, lr={"projector": 1.0}))
    optimizer = torch.optim.Adam(model.projector.parameters(), lr=2e-2)
    losses = []
    for step in range(20):
        with recomputed(model.blocks() if step % 2 else ()):
            loss = model.loss(batch)
            losses.append(loss.sum.item() / loss.count)
            optimizer.zero_grad()
            loss.sum.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_what_does_not_fit_is_refused(toy):
    with pytest.raises(ConfigError, match="of 1 layers of one encoder"):
        toy.build(projector=DeepStackConfig(levels=2))
    deep = CrossAttentionConfig((3,), 2, AveragePoolConfig())
    with pytest.raises(ConfigError, match=r"reaches into layer 3, but .* 3 layers"):
        toy.build(projector=deep)
    with pytest.raises(ConfigError, match="5 heads cannot share a width of 16"):
        toy.build(projector=replace(GRIDDED, heads=5))
    assert TowerOptions(layer=(8, 16, 24, -1)).layer[-1] == -1
