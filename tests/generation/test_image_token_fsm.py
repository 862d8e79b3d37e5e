"""The grammar of generation against a regular expression, and what it promises of whole replies."""

import dataclasses
import functools
import re

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.errors import ConfigError, DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, user
from chiasm.core.vocab import Vocabulary
from chiasm.data.text import train_bpe
from chiasm.generation.best_of import draw, redraw
from chiasm.generation.edit import inpaint, variation
from chiasm.generation.generator import Generator
from chiasm.generation.image_token_fsm import WORDS, WORDS_OR_IMAGE, Edit, Grammar, Row
from chiasm.generation.sampling import choose
from chiasm.hub import unified
from chiasm.mllm.codec import MLLMCodec
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import AutoencoderConfig, FSQConfig, ResidualVQConfig, UnifiedConfig

TOKENS = AutoencoderConfig(
    quantizer=FSQConfig((4, 3)),
    image_size=8,
    base_channels=32,
    multipliers=(1, 1, 1),
    decoder_channels=64,
    decoder_blocks=1,
)
SHAPE = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
GRIDS = ((2, 2), (1, 3), (3, 2), (1, 2))
KINDS = {
    "one size": {},
    "sizes": {"grids": GRIDS},
    "rows": {"grids": GRIDS, "row_ends": True},
    "masked": {"image_objective": "masked"},
    "masked sizes": {"image_objective": "masked", "grids": GRIDS},
    "masked 2d": {"image_objective": "masked", "rope": "2d"},
}


def build(seed=1, **changes):
    """A random model, lively enough to end replies and begin images by itself."""
    torch.manual_seed(seed)
    words = train_bpe(["what colour is it? red circle user assistant"] * 4, 290)
    config = dataclasses.replace(SHAPE, **changes)
    model, processor = unified.build(config, words, Autoencoder(TOKENS))
    v = model.vocabulary
    with torch.no_grad():
        for parameter in (*processor.codec.autoencoder.parameters(), *model.parameters()):
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
        model.lm_head.weight[[v.end, v.begin_image]] *= 3
    return model.eval(), processor


@pytest.fixture(scope="module")
def models():
    return {name: build(**changes) for name, changes in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request, models):
    return models[request.param]


def image(seed, width=8, height=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def mixed():
    return [
        Sample((user("what is it?"),)),
        Sample((user(Image(image(0)), "what colour?"),)),
        Sample((user(Image(image(0)), "a circle, is it?"),)),
        Sample((user(Image(image(1, 24, 8)), Image(image(2, 8, 24)), "which?"),)),
        Sample((user("a red circle"),)),
    ]


def letters(vocabulary, tokens):
    """A reply as text that regular expressions can read."""
    names = {vocabulary.begin_image: "b", vocabulary.end_image: "e", vocabulary.row_end: "r"}
    said = []
    for token in tokens:
        if token in names:
            said.append(names[token])
        elif token >= vocabulary.text:
            said.append("c")
        elif token >= vocabulary.text - vocabulary.sides:
            said.append(f"<{vocabulary.id_to_side(token)}>")
        else:
            said.append("t" if token not in (vocabulary.pad, vocabulary.mask) else "!")
    return "".join(said)


def language(vocabulary, grids):
    """What a reply may look like: words, and images of one of the grids, never cut short."""
    row = "r" if vocabulary.row_end is not None else ""
    images = [
        (f"<{h}><{w}>" if vocabulary.sides else "") + f"(?:c{{{w}}}{row}){{{h}}}" for h, w in grids
    ]
    return re.compile(f"t*(?:b(?:{'|'.join(images)})e|t)*")


def sizes(count):
    return st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        min_size=1,
        max_size=count,
        unique=True,
    )


@settings(max_examples=30, deadline=None)
@given(sizes(4), st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 10**6))
def test_every_walk_speaks_the_language(grids, announced, rows, images, seed):
    grids = grids if announced else grids[:1]
    v = Vocabulary(20, 5, 0, 1, 2, 3, 4, None, 5 if rows else None, 4 if announced else 0)
    grammar, random = Grammar(v, grids), np.random.default_rng(seed)
    state = grammar.start(
        SamplingParams(max_images=images, draw_first=bool(seed % 2) and images > 0)
    )
    said, drawn = [], []
    while (len(said) < 60 or state.drawing) and not state.done:
        ahead = state.ahead()
        assert ahead[0] == state.allowed()
        allowed = grammar.allow(torch.tensor(ahead[:1]))[0]
        token = int(random.choice(np.flatnonzero(allowed.numpy())))
        if len(said) % 8 == seed % 8:
            with pytest.raises(ValueError, match="not allowed"):
                state.take(int(random.choice(np.flatnonzero(~allowed.numpy()))))
        said.append(token)
        found = state.take(token)
        if found is not None:
            drawn.append(found)
    assert language(v, grids).fullmatch(letters(v, said))
    assert len(drawn) == state.images <= images
    codes = [token for token in said if token >= v.text]
    assert codes == [token for one in drawn for token in one.ids]
    assert all(len(one.ids) == one.grid[0] * one.grid[1] for one in drawn)
    assert {one.grid for one in drawn} <= set(grids)


def test_what_is_ahead_is_what_comes():
    v = Vocabulary(20, 5, 0, 1, 2, 3, 4, None, 5, 4)
    grammar = Grammar(v, [(2, 3)])
    state = grammar.start(SamplingParams(max_images=1))
    for token in (7, v.begin_image, v.side_to_id(2), v.side_to_id(3)):
        state.take(token)
    ahead = state.ahead()
    assert len(ahead) == 2 * (3 + 1) + 1
    for mark in ahead:
        assert state.allowed() == mark
        state.take(~mark if mark < 0 else v.first_code)
    assert not state.drawing


def test_an_image_that_does_not_fit_is_not_begun():
    v = Vocabulary(20, 5, 0, 1, 2, 3, 4)
    grammar = Grammar(v, [(2, 3)])
    assert grammar.length((2, 3)) == 8
    state = grammar.start(SamplingParams(max_images=2), room=9)
    assert state.allowed() == WORDS_OR_IMAGE
    state.take(7)
    assert state.allowed() == WORDS_OR_IMAGE
    state.take(7)
    assert state.allowed() == WORDS


def test_several_sizes_need_announcements_and_unknown_sizes_are_refused():
    v = Vocabulary(20, 5, 0, 1, 2, 3, 4)
    with pytest.raises(ConfigError, match="announce"):
        Grammar(v, [(2, 2), (1, 1)])
    with pytest.raises(ConfigError, match="this model draws 2x2"):
        Grammar(v, [(2, 2)]).start(SamplingParams(grid=(5, 5)))


# Whole replies of random models.


@pytest.fixture
def said(monkeypatch):
    """Every reply's tokens, as they are taken in."""
    replies = {}
    take = Row.take

    def record(self, token):
        replies.setdefault(id(self), (self, []))[1].append(token)
        return take(self, token)

    monkeypatch.setattr(Row, "take", record)
    return replies


def replies(model, processor, samples, sampling, **options):
    result = [["", [], None] for _ in samples]
    for n, piece in Generator(model, processor)(samples, sampling, **options):
        assert result[n][2] is None, "a piece after the last one"
        result[n][0] += piece.text
        result[n][1] += [piece.image.tobytes()] if piece.image is not None else []
        result[n][2] = piece.finish
    return [tuple(r) for r in result]


def test_a_thousand_random_replies_have_no_invalid_id_and_whole_images(models, said):
    count = images = 0
    for name, (model, processor) in models.items():
        pattern = language(model.vocabulary, processor.codec.grids)
        for seed in range(6):
            said.clear()
            sampling = SamplingParams(
                1.0,
                max_tokens=8,
                max_images=2,
                seed=seed,
                guidance=1.0 + seed % 2,
                image_steps=3,
                image_top_k=6 if seed > 3 else None,
            )
            found = replies(model, processor, 6 * mixed()[:4] + 4 * mixed()[4:], sampling)
            assert {finish for _, _, finish in found} <= {"stop", "length"}
            for state, tokens in said.values():
                assert pattern.fullmatch(letters(model.vocabulary, tokens)), name
                assert not state.drawing
            count += len(said)
            images += sum(len(own) for _, own, _ in found)
    assert count >= 1000
    assert images > 100


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_greedy_batches_equal_single_replies(kind, guidance):
    for sampling in (
        SamplingParams(max_tokens=6, max_images=2, guidance=guidance, image_steps=3),
        SamplingParams(draw_first=True, guidance=guidance, image_steps=3),
    ):
        together = replies(*kind, mixed(), sampling)
        assert all(len(images) == 1 for _, images, _ in together) or not sampling.draw_first
        assert together == [replies(*kind, [sample], sampling)[0] for sample in mixed()]


def test_guidance_of_one_is_none(kind):
    sampling = SamplingParams(draw_first=True, image_steps=3)
    plain = replies(*kind, mixed(), sampling)
    assert replies(*kind, mixed(), dataclasses.replace(sampling, guidance=1 + 1e-7)) == plain
    assert replies(*kind, mixed(), dataclasses.replace(sampling, guidance=9.0)) != plain


def record_codes(processor, monkeypatch):
    """The ids of every image that is decoded."""
    drawn, decode = [], processor.codec.decode_all

    def keep(ids, grids):
        drawn.extend(own.tolist() for own in ids)
        return decode(ids, grids)

    monkeypatch.setattr(processor.codec, "decode_all", keep)
    return drawn


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_inpainting_keeps_the_given_codes_exactly(kind, guidance, monkeypatch):
    model, processor = kind
    drawn = record_codes(processor, monkeypatch)
    mask = PIL.Image.new("L", (8, 8))
    mask.paste(255, (4, 4, 8, 8))  # one of the four codes of a square
    edits = [inpaint(processor.codec, image(9), mask), None]
    edits.append(variation(processor.codec, image(8), 0.5, 3))
    samples, fresh = [mixed()[0], mixed()[4], mixed()[1]], set()
    for seed in range(4):
        drawn.clear()
        sampling = SamplingParams(1.0, draw_first=True, guidance=guidance, seed=seed, image_steps=2)
        order = [n for n, _ in Generator(model, processor)(samples, sampling, edits)]
        for number, ids in zip(order, drawn, strict=True):
            edit = edits[number]
            if edit is not None:
                assert edit.grid == (2, 2)
                given = zip(ids, edit.ids, edit.keep, strict=True)
                assert all(new == old for new, old, keep in given if keep)
            if number == 0:
                assert sum(edit.keep) == 3
                fresh.add(ids[3])
    assert len(fresh) > 1


def test_a_size_can_be_asked_for(models):
    for name in ("sizes", "rows", "masked sizes"):
        for h, w in GRIDS:
            sampling = SamplingParams(1.0, draw_first=True, grid=(h, w), image_steps=2)
            pieces = Generator(*models[name])(mixed(), sampling)
            assert {piece.image.size for _, piece in pieces} == {(4 * w, 4 * h)}
    with pytest.raises(ConfigError, match="this model draws 2x2"):
        list(Generator(*models["one size"])(mixed(), SamplingParams(draw_first=True, grid=(1, 1))))


# Codecs of several sizes, edits, sampling.


def test_images_are_squeezed_to_the_nearest_grid_and_come_back_in_it(models):
    codec = models["rows"][1].codec
    v = codec.vocabulary
    for size, grid in {(8, 8): (2, 2), (30, 10): (1, 3), (80, 121): (3, 2), (9, 4): (1, 2)}.items():
        (slot,) = codec.encode([image(0, *size)])
        assert slot.grid == grid
        assert language(v, [grid]).fullmatch(letters(v, slot.input_ids))
        codes = [int(i) for i in slot.input_ids if i >= v.text]
        assert codec.decode(torch.tensor(codes), grid).size == (4 * grid[1], 4 * grid[0])
    many = [image(n, *size) for n, size in enumerate([(8, 8), (30, 10), (9, 9), (60, 20)])]
    for slot, one in zip(codec.encode(many), many, strict=True):
        assert slot.input_ids.tolist() == codec.encode([one])[0].input_ids.tolist()


def test_sizes_and_row_ends_survive_saving(models, tmp_path):
    model, processor = models["rows"]
    unified.save(tmp_path, model, processor)
    again, loaded = unified.load(tmp_path)
    assert again.vocabulary == model.vocabulary
    assert again.vocabulary.sides == 3
    assert loaded.codec.grids == GRIDS
    assert replies(again, loaded, mixed(), SamplingParams(max_images=1)) == replies(
        model, processor, mixed(), SamplingParams(max_images=1)
    )


@functools.cache
def codec_of(depth):
    quantizer = ResidualVQConfig(codes=12, width=4, depth=2) if depth == 2 else FSQConfig((4, 3))
    autoencoder = Autoencoder(dataclasses.replace(TOKENS, quantizer=quantizer))
    vocabulary = Vocabulary(10, 12, pad=0, begin=1, end=2, begin_image=3, end_image=4)
    return UnifiedCodec(autoencoder, vocabulary)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_a_code_is_drawn_anew_if_any_of_its_pixels_is_marked(width, height, seed):
    depth = 1 + seed % 2
    light = np.random.default_rng(seed).random((height, width)) < 0.1
    light.flat[seed % light.size] = True
    mask = PIL.Image.fromarray((light * 255).astype(np.uint8))
    edit = inpaint(codec_of(depth), image(0), mask)
    assert edit.grid == (2, 2 * depth)
    for r in range(2):
        for c in range(2):
            touched = any(
                light[y, x]
                for y in range(height)
                for x in range(width)
                if y * 2 < (r + 1) * height
                and (y + 1) * 2 > r * height
                and x * 2 < (c + 1) * width
                and (x + 1) * 2 > c * width
            )
            for d in range(depth):
                assert edit.keep[(r * 2 + c) * depth + d] == (not touched)


def test_a_variation_draws_the_share_that_was_asked_for(models):
    codec = models["one size"][1].codec
    assert [sum(variation(codec, image(0), s, 0).keep) for s in (0.01, 0.5, 1.0)] == [3, 2, 0]
    assert len({variation(codec, image(0), 0.5, seed).keep for seed in range(20)}) > 1


def test_edits_that_cannot_be_are_refused(models):
    codec = models["one size"][1].codec
    with pytest.raises(DataError, match="marks nothing"):
        inpaint(codec, image(0), PIL.Image.new("L", (4, 4), 127))
    with pytest.raises(DataError, match="at most 1"):
        variation(codec, image(0), 1.5, 0)
    with pytest.raises(NotGenerativeError):
        variation(MLLMCodec.__new__(MLLMCodec), image(0), 0.5, 0)


def test_draw_takes_edits_and_redraw_shows_the_image(models, monkeypatch):
    model, processor = models["one size"]
    respond, sampling = Generator(model, processor), SamplingParams(1.0)
    everything = Edit((model.vocabulary.first_code + 5,) * 4, (True,) * 4, (2, 2))
    expected = processor.codec.decode(torch.tensor(everything.ids)).tobytes()
    drawn = draw(respond, ["red", "circle"], sampling, candidates=2, edit=everything)
    assert [one.best.tobytes() for one in drawn] == [expected] * 2
    asked, prompts = [], processor.prompts
    monkeypatch.setattr(processor, "prompts", lambda s: (asked.extend(s), prompts(s))[1])
    assert len(redraw(respond, Image(image(0)), ["red", "make it blue"], sampling)) == 2
    assert [len(sample.images) for sample in asked] == [1, 1]


@pytest.mark.parametrize("text", [0.0, 1.0])
def test_each_modality_is_sampled_its_own_way(text):
    logits = torch.randn(6, 30)
    of_images = torch.tensor([True, False] * 3)
    sampling = SamplingParams(text, top_k=3, image_temperature=1.0 - text, image_top_k=5)
    assert sampling.of_images.top_k == 5
    assert sampling.of_images.top_p == sampling.top_p
    drawn = torch.stack(
        [
            choose(logits, sampling, torch.Generator().manual_seed(seed), of_images)
            for seed in range(200)
        ]
    )
    for row in range(6):
        kept = 1 if (text == 0.0) != bool(of_images[row]) else (5 if of_images[row] else 3)
        best = logits[row].topk(kept).indices.tolist()
        assert set(drawn[:, row].tolist()) == set(best)
