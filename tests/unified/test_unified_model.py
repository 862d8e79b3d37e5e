"""The unified transformer: packing, branches, accounting of the modalities and of the cost."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from chiasm.core.batch import IGNORE, Encoded, pack
from chiasm.core.sample import Image, Sample, assistant, split_independent, user
from chiasm.core.vocab import Vocabulary
from chiasm.data.processor import Processor
from chiasm.data.text import train_bpe
from chiasm.hub import unified as hub
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.unified.model import Unified
from kernel_stand_ins import blocks_of, using, varlen

VOCABULARY = Vocabulary(text=20, codes=12, pad=0, begin=1, end=2, begin_image=3, end_image=4)
CONFIG = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)


def model(**changes):
    torch.manual_seed(0)
    made = Unified(dataclasses.replace(CONFIG, **changes), VOCABULARY)
    with torch.no_grad():  # larger than at the start, so that attention is not nearly uniform
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def sample(length, seed, kind="causal"):
    """Random ids of both modalities with a target on about half of the tokens."""
    random = np.random.default_rng((length, seed))
    ids = random.integers(0, VOCABULARY.size, length)
    targets = np.where(
        random.random(length) < 0.5, random.integers(0, VOCABULARY.size, length), IGNORE
    )
    targets[-1] = random.integers(0, VOCABULARY.size)
    position, branch = np.arange(length), np.zeros(length, np.int64)
    block = position.copy()
    if kind == "prefix":
        block[: length // 2] = 0
    if kind == "branches":
        trunk, cut = length // 3, 2 * length // 3
        branch[trunk:cut], branch[cut:] = 1, 2
        position = np.concatenate([np.arange(cut), np.arange(trunk, trunk + length - cut)])
        block = position.copy()
    return Encoded(ids, targets, block, branch, position)


def gradients(made):
    found = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad(set_to_none=True)
    return found


def assert_gradients_equal(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4, msg=name)


SAMPLES = st.lists(
    st.tuples(
        st.integers(3, 17), st.integers(0, 99), st.sampled_from(["causal", "prefix", "branches"])
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(SAMPLES, st.integers(1, 4), st.integers(0, 5))
def test_packed_loss_and_gradients_equal_separate_ones(shapes, cut, padding):
    made = model(z_loss=1e-2, image_weight=0.5)
    samples = [sample(*shape) for shape in shapes]
    rows = [row for row in (samples[:cut], samples[cut:]) if row]
    longest = max(sum(map(len, row)) for row in rows)
    packed = made.loss(pack(rows, longest + padding))
    packed.sum.backward()
    together = gradients(made)
    alone = [made.loss(pack([[s]])) for s in samples]
    total = torch.stack([loss.sum for loss in alone]).sum()
    total.backward()
    torch.testing.assert_close(packed.sum, total, atol=1e-5, rtol=1e-5)
    assert packed.count == sum(loss.count for loss in alone)
    assert_gradients_equal(together, gradients(made))
    for name, (value, count) in packed.numbers().items():
        assert value == pytest.approx(sum(loss.numbers()[name][0] for loss in alone), 1e-4, 1e-4)
        assert count == sum(loss.numbers()[name][1] for loss in alone)


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(SAMPLES, st.integers(1, 4), st.integers(0, 4))
def test_perturbing_a_sample_changes_the_others_by_exactly_zero(shapes, cut, which):
    made = model()
    samples = [sample(*shape) for shape in shapes]
    which %= len(samples)
    other = dataclasses.replace(
        samples[which], input_ids=(samples[which].input_ids + 7) % VOCABULARY.size
    )
    changed = [other if n == which else s for n, s in enumerate(samples)]
    before, after = (pack([row for row in (s[:cut], s[cut:]) if row]) for s in (samples, changed))
    a, b = made(before), made(after)
    mine = before.input_ids != after.input_ids
    row = mine.any(1)[:, None]
    segment = before.segment_ids[mine][0] if mine.any() else -2
    rest = ~(row & (before.segment_ids == segment)) & (before.segment_ids >= 0)
    assert torch.equal(a[rest], b[rest])
    assert not torch.equal(a[mine], b[mine])


@torch.no_grad()
def test_logits_equal_a_llama_of_the_same_weights():
    """Without QK-norm the model is transformers' Llama, layer for layer."""
    ours = model(qk_norm=False)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY.size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": ours.config.rope_theta},
            attn_implementation="eager",
        )
    ).eval()
    state = ours.state_dict()
    theirs.load_state_dict(
        {k if k.startswith("lm_head") else f"model.{k}": v for k, v in state.items()}
    )
    batch = pack([[sample(11, 0)], [sample(11, 1)]])
    torch.testing.assert_close(
        ours.logits(ours(batch)), theirs(batch.input_ids).logits, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_parts_and_sum_equal_numpy():
    made = model(z_loss=0.01, image_weight=0.25)
    batch = pack([[sample(15, 0), sample(9, 1)], [sample(12, 2)]])
    loss = made.loss(batch)
    logits = made.logits(made(batch)).double().numpy()
    parts = {"text": [0.0, 0], "image": [0.0, 0], "log_z_squared": [0.0, 0]}
    for b, t in np.ndindex(*batch.input_ids.shape):
        target = int(batch.labels[b, t])
        if target == IGNORE:
            continue
        log_z = np.log(np.exp(logits[b, t]).sum())
        for name, value in (
            ("image" if target >= 20 else "text", log_z - logits[b, t, target]),
            ("log_z_squared", log_z**2),
        ):
            parts[name][0] += value
            parts[name][1] += 1
    for name, (value, count) in parts.items():
        assert loss.numbers()[name] == (pytest.approx(value, 1e-4), count)
    assert loss.count == parts["log_z_squared"][1] == parts["text"][1] + parts["image"][1]
    expected = parts["text"][0] + 0.25 * parts["image"][0] + 0.01 * parts["log_z_squared"][0]
    assert loss.sum.item() == pytest.approx(expected, 1e-4)


def test_a_batch_without_targets_is_zero_and_finite():
    made, blank = model(), sample(6, 0)
    loss = made.loss(pack([[dataclasses.replace(blank, labels=np.full(6, IGNORE))]]))
    assert (loss.sum.item(), loss.count) == (0.0, 0)
    loss.sum.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def route():
    """A tiny unified model with its processor."""
    torch.manual_seed(0)
    tokens = AutoencoderConfig(
        quantizer=FSQConfig((4, 3)),
        image_size=8,
        base_channels=32,
        multipliers=(1, 1, 1),
        decoder_channels=64,
        decoder_blocks=1,
    )
    words = train_bpe(["what colour is it? red circle"] * 4, 290)
    made, processor = hub.build(CONFIG, words, Autoencoder(tokens))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made, processor


def asked():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image(PIL.Image.fromarray(pixels))
    return Sample(
        (
            user(image, "what colour?"),
            assistant("red"),
            user("shape"),
            assistant("a circle"),
            user("is it blue, really?"),
            assistant("no"),
        ),
        "s",
        independent=True,
    )


def text_outside(encoded, processor):
    """Only the targets that are words: neither codes nor what stands around an image."""
    vocabulary = processor.codec.vocabulary
    image = np.isin(encoded.labels, [vocabulary.begin_image, vocabulary.end_image])
    words = ~image & (encoded.labels < vocabulary.text)
    return dataclasses.replace(encoded, labels=np.where(words, encoded.labels, IGNORE))


def image_only(encoded, processor):
    words = text_outside(encoded, processor).labels != IGNORE
    return dataclasses.replace(encoded, labels=np.where(words, IGNORE, encoded.labels))


@pytest.mark.parametrize("supervise", [False, True])
def test_questions_as_branches_equal_questions_asked_separately(route, supervise):
    made, codec = route[0], route[1].codec
    processor = Processor(route[1].template, codec, supervise_images=supervise)
    joint = processor.encode(asked())
    single = [processor.encode(s) for s in split_independent(asked())]
    assert len(single) == 3
    assert len(joint) < sum(map(len, single))
    whole = made.loss(pack([[joint]]))
    whole.sum.backward()
    together = gradients(made)
    # The trunk's image is learned once, each question's words as if it were asked alone.
    pieces = [image_only(single[0], processor)] + [text_outside(s, processor) for s in single]
    alone = [made.loss(pack([[piece]])) for piece in pieces]
    total = torch.stack([loss.sum for loss in alone]).sum()
    total.backward()
    torch.testing.assert_close(whole.sum, total, atol=1e-5, rtol=1e-5)
    assert whole.count == sum(loss.count for loss in alone)
    assert codec.codes_per_image == 4
    assert whole.numbers()["image"][1] == (4 if supervise else 0)
    assert_gradients_equal(together, gradients(made))


@torch.no_grad()
def test_changing_a_question_changes_no_other_branch_and_not_the_trunk(route):
    made, processor = route
    joint = processor.encode(asked())
    ids = np.where(
        joint.branch_ids == 2,
        (joint.input_ids + 1) % processor.codec.vocabulary.text,
        joint.input_ids,
    )
    a = made(pack([[joint]]))[0]
    b = made(pack([[dataclasses.replace(joint, input_ids=ids)]]))[0]
    rest = torch.from_numpy(joint.branch_ids != 2)
    assert torch.equal(a[rest], b[rest])


@pytest.mark.parametrize("rows", [((40,), (40,)), ((40, 12), (12, 40))])
def test_cost_is_what_torch_counts(rows):
    """Causal samples with a target on every token and no padding, one at a time through the plain
    kernel, whose operations torch counts: in one row it would mix samples and mask that out."""
    made = model(qk_norm=True)
    encoded = [[sample(n, 0) for n in row] for row in rows]
    full = [[dataclasses.replace(s, labels=s.input_ids) for s in row] for row in encoded]
    batch = pack(full)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for one in itertools.chain(*full):
            made.loss(pack([[one]])).sum.backward()
    cost = made.cost(batch)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert cost.tokens == sum(map(sum, rows))
    assert cost.images == 0


def test_groups_hold_every_parameter_once():
    made = model()
    owned = [p for part in made.groups().values() for p in part.parameters()]
    assert sorted(map(id, owned)) == sorted(map(id, made.parameters()))
    assert all(block in list(made.modules()) for block in made.blocks())


@torch.no_grad()
def test_save_and_load_give_equal_logits(route, tmp_path):
    from chiasm.hub.load import load

    made, processor = route
    hub.save(tmp_path / "run", made, processor)
    again, other = load(tmp_path / "run")
    batch = pack([[processor.encode(asked())]])
    back = pack([[other.encode(asked())]])
    assert torch.equal(batch.input_ids, back.input_ids)
    assert torch.equal(batch.labels, back.labels)
    assert torch.equal(made.logits(made(batch)), again.logits(again(back)))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("kinds", [["causal"], ["causal", "prefix", "branches"]])
def test_an_accelerators_kernels_give_the_same_loss_and_gradients(kinds, attention):
    made = model(image_attention=attention)
    row = [sample(n, n, kind) for n, kind in itertools.product((3, 9, 14), kinds)]
    batch = pack([row], 80)
    expected = made.loss(batch)
    expected.sum.backward()
    theirs = gradients(made)
    made.zero_grad()
    with using(varlen), blocks_of(4):
        loss = made.loss(batch)
        loss.sum.backward()
    torch.testing.assert_close(loss.sum, expected.sum, atol=1e-4, rtol=1e-5)
    for name, gradient in gradients(made).items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-4, rtol=1e-3)
