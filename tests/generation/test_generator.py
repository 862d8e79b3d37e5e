"""Cached, batched, branched and guided generation against naive loops of full forward passes."""

import dataclasses

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.batch import IGNORE, Encoded, pack
from chiasm.core.errors import DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.generation.best_of import APART, draw
from chiasm.generation.generator import Generator
from chiasm.generation.likelihood import reply_log_likelihood
from chiasm.generation.sampling import choose, guide, probabilities
from chiasm.hub import mllm, unified
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.nn.cache import KVCache
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

TOKENS = AutoencoderConfig(
    quantizer=FSQConfig((4, 3)),
    image_size=8,
    base_channels=32,
    multipliers=(1, 1, 1),
    decoder_channels=64,
    decoder_blocks=1,
)
SHAPE = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words():
    return train_bpe(["what colour is it? red circle user assistant"] * 4, 290)


@pytest.fixture(scope="module")
def drawing():
    """A random unified model, lively enough to end replies and begin images by itself."""
    model, processor = unified.build(SHAPE, words(), Autoencoder(TOKENS))
    vocabulary = model.vocabulary
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (*processor.codec.autoencoder.parameters(), *model.parameters()):
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
        model.lm_head.weight[[vocabulary.end, vocabulary.begin_image]] *= 3
    return model.eval(), processor


def reading_model(folder, projector=None):
    """A random MLLM and its processor."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words(),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    tokenizer.chat_template = CHATML
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        llama.lm_head.weight[tokenizer.eos_token_id] *= 2.5
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = MLLMConfig(
        language_model=str(folder), projector=projector or MLPConfig(merge=2), lora=None
    )
    model, processor = mllm.build(
        config, ViT(ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2))
    )
    with torch.no_grad():
        for name, parameter in model.projector.named_parameters():
            if "gate" in name:  # closed at first: images would not be seen
                parameter.fill_(1.0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    return reading_model(tmp_path_factory.mktemp("llama"))


def image(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image(PIL.Image.fromarray(pixels))


def mixed():
    """No image, one, two, a dialogue; and questions that share an image, side by side."""
    return [
        Sample((user("what is it?"),)),
        Sample((user(image(0), "what colour?"),)),
        Sample((user(image(0), "a circle, is it?"),)),
        Sample((user(image(0), "red"),)),
        Sample((user(image(1), image(2), "which?"),)),
        Sample((user(image(3), "what?"), assistant("red"), user("really?"))),
        Sample((user("a red circle"),)),
        Sample((user("is it a circle or is it red, what colour is it, what is it?"),)),
    ]


# The naive references: one sample at a time, everything computed anew at each step.


def full_logits(model, ids, like):
    """Logits after a causal sequence of ids; `like` carries the images' patches."""
    T = len(ids)
    encoded = Encoded(
        np.array(ids),
        np.full(T, -100),
        np.arange(T),
        np.zeros(T, np.int64),
        np.arange(T),
        like.image_patches,
        like.image_grids,
    )
    return model.logits(model(pack([[encoded]]))[0, -1]).float()


def grammar(vocabulary, codes_per_image, sampling, state):
    """The ids that may come next, as a set, from what the reply holds so far."""
    codes = set(range(vocabulary.text, vocabulary.size))
    if state["drawing"]:
        return codes if len(state["codes"]) < codes_per_image else {vocabulary.end_image}
    if sampling.draw_first and not state["images"]:
        return {vocabulary.begin_image}
    allowed = set(range(vocabulary.text)) - {
        vocabulary.pad,
        vocabulary.begin,
        vocabulary.begin_image,
        vocabulary.end_image,
    }
    return allowed | ({vocabulary.begin_image} if state["images"] < sampling.max_images else set())


@torch.no_grad()
def naive(model, processor, sample, sampling, unconditional=None):
    """(text, images, finish) of a greedy reply; unconditional: ids of the twin's prompt."""
    ((prompt, _),) = processor.prompts([sample])
    ids, twin = prompt.input_ids.tolist(), unconditional
    vocabulary = processor.codec.vocabulary
    state = {"drawing": False, "codes": [], "images": 0}
    said, images = [], []
    while True:
        logits = full_logits(model, ids, prompt)
        if twin is not None and state["drawing"]:
            c, u = logits.log_softmax(0), full_logits(model, twin, prompt).log_softmax(0)
            logits = u + sampling.guidance * (c - u)
        if vocabulary is not None:
            allowed = grammar(vocabulary, processor.codec.codes_per_image, sampling, state)
            order = [int(i) for i in logits.argsort(descending=True) if int(i) in allowed]
        else:
            order = [
                int(i)
                for i in logits.argsort(descending=True)
                if int(i) != processor.template.marker
            ]
        token = order[0]
        ids = [*ids, token]
        twin = None if twin is None else [*twin, token]
        if vocabulary is not None and token == vocabulary.begin_image:
            state.update(drawing=True, codes=[])
        elif vocabulary is not None and token == vocabulary.end_image:
            state.update(drawing=False, images=state["images"] + 1)
            images.append(processor.codec.decode(torch.tensor(state["codes"])))
            if sampling.draw_first and state["images"] == max(1, sampling.max_images):
                return processor.template.decode(said), images, "stop"
        elif state["drawing"]:
            state["codes"].append(token)
        elif token in processor.template.stop:
            return processor.template.decode(said), images, "stop"
        else:
            said.append(token)
            if len(said) == sampling.max_tokens:
                return processor.template.decode(said), images, "length"


def replies(model, processor, samples, sampling, **options):
    """What the generator yields, as (text, images, finish) a sample; checks the finish flags."""
    result = [["", [], None] for _ in samples]
    for n, piece in Generator(model, processor, **options)(samples, sampling):
        assert result[n][2] is None, "a piece after the last one"
        result[n][0] += piece.text
        result[n][1] += [piece.image] if piece.image is not None else []
        result[n][2] = piece.finish
    assert all(finish in ("stop", "length") for _, _, finish in result)
    return [tuple(r) for r in result]


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a[0] == b[0]
        assert a[2] == b[2]
        assert [p.tobytes() for p in a[1]] == [p.tobytes() for p in b[1]]


@pytest.mark.parametrize("route", ["drawing", "reading"])
@pytest.mark.parametrize("tokens", [4096, 60, 1])
def test_greedy_replies_equal_a_naive_loop(route, tokens, request):
    """Text answers of mixed prompts, some sharing an image, in batches of every size."""
    model, processor = request.getfixturevalue(route)
    sampling = SamplingParams(max_tokens=12)
    expected = [naive(model, processor, s, sampling) for s in mixed()]
    assert {finish for _, _, finish in expected} == {"stop", "length"}
    assert_same(replies(model, processor, mixed(), sampling, tokens=tokens), expected)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=6, max_images=1),
        SamplingParams(max_tokens=6, max_images=2),
        SamplingParams(draw_first=True),
        SamplingParams(draw_first=True, max_images=2, max_tokens=5),
    ],
)
def test_greedy_replies_with_images_equal_a_naive_loop(drawing, sampling):
    expected = [naive(*drawing, s, sampling) for s in mixed()]
    assert any(images for _, images, _ in expected)
    assert_same(replies(*drawing, mixed(), sampling), expected)


def bare_prompt(processor, sample):
    """The twin's prompt spelled out: roles without any word."""
    template = processor.template
    ids = [template.begin]
    for turn in sample.turns:
        ids += template.roles[turn.role] + [template.end] * (turn.role == "assistant")
    return [*ids, *template.roles["assistant"]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_finished_rows_leave_the_batch_and_change_nothing(drawing, monkeypatch, guidance):
    kept = []
    select = KVCache.select
    monkeypatch.setattr(
        KVCache, "select", lambda self, rows: (kept.append(len(rows)), select(self, rows))
    )
    random, sampling = (
        np.random.default_rng(0),
        SamplingParams(max_tokens=16, max_images=1, guidance=guidance),
    )
    drawn = 0
    for _ in range(3):
        texts = ["".join(random.choice(list("abcdefgh "), 5)) for _ in range(8)]
        samples = [Sample((user(text),)) for text in texts]
        twins = [bare_prompt(drawing[1], s) if guidance != 1 else None for s in samples]
        got = replies(*drawing, samples, sampling)
        drawn += sum(len(images) for _, images, _ in got)
        assert_same(
            got, [naive(*drawing, s, sampling, t) for s, t in zip(samples, twins, strict=True)]
        )
    assert drawn
    assert len(kept) >= 2
    assert all(0 < rows < 8 * (1 + (guidance != 1)) for rows in kept)


def lone():
    """Prompts of which no two share an image."""
    return [s for n, s in enumerate(mixed()) if n not in (2, 3)]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(draw_first=True, guidance=3.0),
        SamplingParams(draw_first=True, guidance=0.0),
        SamplingParams(draw_first=True, guidance=3.0, max_images=2, max_tokens=4),
        SamplingParams(guidance=3.0, max_images=1, max_tokens=8),
    ],
)
def test_guided_drawing_equals_a_naive_loop_of_two_passes(drawing, sampling):
    expected = [naive(*drawing, s, sampling, bare_prompt(drawing[1], s)) for s in lone()]
    plain = [naive(*drawing, s, sampling) for s in lone()]
    a, b = ([p.tobytes() for _, images, _ in r for p in images] for r in (expected, plain))
    assert a != b
    assert_same(replies(*drawing, lone(), sampling), expected)


def test_guided_drawings_that_share_an_image_equal_single_ones(drawing):
    sampling = SamplingParams(draw_first=True, guidance=2.0)
    expected = [naive(*drawing, s, sampling, bare_prompt(drawing[1], s)) for s in mixed()[1:4]]
    assert_same(replies(*drawing, mixed()[1:4], sampling), expected)


def test_guidance_of_one_is_no_guidance(drawing):
    sampling = SamplingParams(draw_first=True)
    plain = replies(*drawing, lone(), sampling)
    for guidance in (1.0, 1.0 + 1e-7):  # the second takes the path of two passes
        assert_same(
            replies(*drawing, lone(), dataclasses.replace(sampling, guidance=guidance)), plain
        )


def test_drawings_in_a_batch_equal_single_ones(drawing):
    samples = [Sample((user(text),)) for text in ("red", "a circle", "what is it?", "red red")]
    for guidance in (1.0, 2.5):
        sampling = SamplingParams(draw_first=True, guidance=guidance)
        single = [replies(*drawing, [s], sampling)[0] for s in samples]
        assert_same(replies(*drawing, samples, sampling), single)


@pytest.mark.parametrize("max_images", [0, 1, 2])
@pytest.mark.parametrize("draw_first", [False, True])
def test_every_drawn_image_is_complete(drawing, max_images, draw_first, monkeypatch):
    model, processor = drawing
    vocabulary, drawn = processor.codec.vocabulary, []
    decode = processor.codec.decode_all

    def keep(ids, grids):
        drawn.extend(ids)
        return decode(ids, grids)

    monkeypatch.setattr(processor.codec, "decode_all", keep)
    count = 0
    for seed in range(6):
        sampling = SamplingParams(
            temperature=1.0,
            max_tokens=10,
            max_images=max_images,
            seed=seed,
            draw_first=draw_first,
            guidance=1.0 + seed % 2,
        )
        for text, images, _ in replies(model, processor, mixed(), sampling):
            count += len(images)
            assert draw_first <= len(images) <= max(max_images, draw_first)
            assert all(p.size == (8, 8) and p.mode == "RGB" for p in images)
            assert "<image>" not in text
            assert "</image>" not in text
    assert len(drawn) == count
    assert (count > 0) == (max_images > 0 or draw_first)
    for ids in drawn:
        assert len(ids) == processor.codec.codes_per_image
        assert bool(vocabulary.is_code(ids).all())


def test_same_seed_same_image_other_seed_another(drawing):
    def draw(seed):
        sampling = SamplingParams(temperature=1.0, draw_first=True, seed=seed)
        ((_, images, _),) = replies(*drawing, [Sample((user("red"),))], sampling)
        return images[0].tobytes()

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_samples_of_one_text_differ(drawing):
    sampling = SamplingParams(temperature=1.0, draw_first=True)
    images = replies(*drawing, [Sample((user("red"),))] * 6, sampling)
    assert len({p[0].tobytes() for _, p, _ in images}) > 1


def test_an_image_comes_as_one_piece_that_ends_the_drawing(drawing):
    pieces = list(Generator(*drawing)([mixed()[0]], SamplingParams(draw_first=True)))
    assert len(pieces) == 1
    assert pieces[0][1].finish == "stop"
    assert pieces[0][1].text == ""


def test_the_mllm_says_that_it_cannot_draw(reading):
    for sampling in (SamplingParams(draw_first=True), SamplingParams(max_images=1)):
        with pytest.raises(NotGenerativeError, match="use a unified model"):
            next(iter(Generator(*reading)([mixed()[0]], sampling)))


def test_the_image_marker_is_never_said(reading):
    """Its id would ask the encoder for an image that is not there."""
    model, processor = reading
    marker = processor.template.marker
    weight = model.head.weight
    before = weight[marker].clone()
    with torch.no_grad():
        weight[marker] = 100 * weight[processor.template.stop[0]]
    try:
        sampling = SamplingParams(temperature=1.0, max_tokens=8)
        got = replies(model, processor, mixed(), sampling)
    finally:
        with torch.no_grad():
            weight[marker] = before
    assert all("<image>" not in text for text, _, _ in got)


def test_a_bad_prompt_is_named(drawing):
    with pytest.raises(DataError, match="'s7': an empty conversation"):
        list(Generator(*drawing)([Sample((Message("user", ()),), "s7")], SamplingParams()))


def test_nothing_asked_nothing_said(drawing):
    assert list(Generator(*drawing)([], SamplingParams())) == []


def test_the_caller_is_not_left_in_inference_mode(drawing):
    for _ in Generator(*drawing)(mixed()[:2], SamplingParams(max_tokens=3)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


# Sampling against NumPy.


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(0, 12), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_probabilities_equal_numpy(seed, top_k, top_p, temperature):
    logits = np.random.default_rng(seed).normal(size=(3, 9)) * 3
    logits[:, 4] = -np.inf
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    found = probabilities(torch.from_numpy(logits), sampling).numpy()
    for row, p in zip(logits, found, strict=True):
        order = np.argsort(-row)
        keep = order[: top_k or 9]
        share = softmax(row[keep] / temperature)
        before = np.concatenate([[0], np.cumsum(share)[:-1]])
        if top_p < 1:
            if np.abs(before - top_p).min() < 1e-5:
                return  # at the very edge float32 may differ
            keep = keep[before < top_p]
        expected = np.zeros(9)
        expected[keep] = softmax(row[keep] / temperature)
        np.testing.assert_allclose(p, expected, atol=1e-5)
        assert p[4] == 0


def test_temperature_zero_is_greedy_whatever_else_is_set():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, float("-inf"), 2.0]])
    assert choose(logits, SamplingParams(top_k=1, top_p=0.1)).tolist() == [1, 0]


def test_choices_follow_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, -1.0, float("-inf")]]).expand(20000, 4)
    sampling = SamplingParams(temperature=0.7)
    ids = choose(logits, sampling, torch.Generator().manual_seed(0))
    found = np.bincount(ids.numpy(), minlength=4) / 20000
    expected = softmax(np.array([1.0, 0.0, -1.0]) / 0.7)
    np.testing.assert_allclose(found[:3], expected, atol=0.015)
    assert found[3] == 0
    again = choose(logits, sampling, torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)


def test_guidance_is_linear_in_log_probabilities():
    c, u = torch.randn(2, 5), torch.randn(2, 5)
    a, b = (np.log([softmax(row) for row in x.double().numpy()]) for x in (c, u))
    expected = torch.from_numpy(b + 3 * (a - b)).softmax(-1).float()
    torch.testing.assert_close(guide(c, u, 3.0).softmax(-1), expected)
    torch.testing.assert_close(guide(c, u, 1.0).softmax(-1), c.softmax(-1))
    torch.testing.assert_close(guide(c, u, 0.0).softmax(-1), u.softmax(-1))


DRAW = SamplingParams(temperature=1.0, guidance=1.5, seed=3)


@pytest.mark.parametrize("tokens", [8, 10_000])
def test_likelihood_is_the_sum_over_the_reply(drawing, tokens):
    model, processor = drawing
    samples = [
        Sample((user(image(5), "what?"), assistant("red"))),
        Sample((user("what colour is it?"), assistant("a red circle"))),
        Sample((user("is it?"), assistant("red"), user("is it?"), assistant("a circle"))),
    ]
    found = reply_log_likelihood(Generator(model, processor, tokens), samples)
    for sample, value in zip(samples, found, strict=True):
        batch = pack([[processor.encode(sample)]])
        with torch.no_grad():
            chances = model.logits(model(batch))[0].log_softmax(-1)
        targets = batch.labels[0]
        expected = sum(float(chances[t, i]) for t, i in enumerate(targets.tolist()) if i != IGNORE)
        assert value == pytest.approx(expected, rel=1e-4)


def test_without_a_reply_there_is_no_likelihood(drawing):
    with pytest.raises(DataError, match="no assistant words"):
        reply_log_likelihood(Generator(*drawing), [Sample((user("what?"),))])


def test_the_drawing_shown_is_the_likeliest_of_its_candidates(drawing):
    respond, texts = Generator(*drawing), ["red", "circle"]
    chosen = draw(respond, texts, DRAW, candidates=3)
    seeds = [DRAW.seed + n * APART for n in range(3)]
    rounds = [draw(respond, texts, dataclasses.replace(DRAW, seed=seed)) for seed in seeds]
    assert all(one.best is one.first and one.tries == 1 for one in rounds[0])
    for number, text in enumerate(texts):
        images = [one[number].best for one in rounds]
        sides = [side for p in images for side in (p, PIL.ImageOps.mirror(p))]
        read = reply_log_likelihood(
            respond, [Sample((user(Image(p)), assistant(text))) for p in sides]
        )
        values = np.reshape(read, (3, 2)).mean(1).tolist()
        assert chosen[number].best.tobytes() == images[values.index(max(values))].tobytes()
        assert chosen[number].first.tobytes() == images[0].tobytes()
        assert chosen[number].tries == 3  # random weights are never sure
        assert chosen[number].score == pytest.approx(max(values), abs=1e-4)


def test_what_the_model_is_sure_of_is_not_drawn_again(drawing, monkeypatch):
    respond, texts = Generator(*drawing), ["red", "circle", "blue"]
    scores = iter([[-3.0, -0.01, -2.0], [-4.0, -0.05], [-5.0]])
    monkeypatch.setattr("chiasm.generation.best_of.read_back", lambda *asked: next(scores))
    chosen = draw(respond, texts, DRAW, candidates=3)
    assert [one.tries for one in chosen] == [3, 1, 2]
    assert [one.score for one in chosen] == [-3.0, -0.01, -0.05]
    assert chosen[0].best is chosen[0].first
    assert chosen[2].best is not chosen[2].first


def test_what_is_not_true_in_a_mirror_is_read_once(drawing, monkeypatch):
    shown = []

    def read(respond, seen):
        shown.append(len(seen))
        return [-1.0] * len(seen)

    monkeypatch.setattr("chiasm.generation.best_of.reply_log_likelihood", read)
    draw(Generator(*drawing), ["red left of blue", "red"], DRAW, candidates=2)
    assert shown == [3, 3]


def test_choose_draws_from_the_softmax_and_never_what_is_forbidden():
    logits = torch.tensor([0.0, 1.0, -1.0, float("-inf"), 0.5]).repeat(40_000, 1)
    drawn = choose(logits, SamplingParams(1.0), torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=5) / len(drawn)
    expected = logits[0].softmax(-1)
    # Five standard errors of a share of 40,000 draws.
    assert (found - expected).abs().max() < 5 * (0.25 / 40_000) ** 0.5
    assert found[3] == 0
