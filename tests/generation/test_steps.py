"""Decode steps of fixed shapes: the same replies as the model's own steps, on any device, captured
or not, with one wait for the device a token."""

import copy
import warnings

import PIL.Image
import pytest
import torch
from test_generator import reading_model
from test_image_token_fsm import GRIDS, build, image, mixed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chiasm.core.errors import ConfigError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, assistant
from chiasm.generation.attribution import look
from chiasm.generation.best_of import draw
from chiasm.generation.edit import inpaint, variation
from chiasm.generation.generator import Generator
from chiasm.generation.likelihood import label_log_likelihood, reply_log_likelihood
from chiasm.generation.steps import StaticStep
from chiasm.mllm.config import CrossAttentionConfig
from chiasm.nn.precision import round_weights
from pretend_device import syncs

WORDS = [
    SamplingParams(max_tokens=7),
    SamplingParams(1.0, max_tokens=9, top_k=20, seed=1),
    SamplingParams(1.0, max_tokens=6, top_p=0.9, seed=2),
]
IMAGES = [
    SamplingParams(1.0, max_tokens=6, max_images=2, seed=3, image_steps=3),
    SamplingParams(max_tokens=6, max_images=2, guidance=2.0, image_steps=3),
    SamplingParams(1.0, draw_first=True, guidance=1.5, seed=4, image_steps=3),
    SamplingParams(draw_first=True, max_images=2, image_temperature=1.0, image_top_k=5, seed=5),
]
DRAWING = {
    "one size": {},
    "rows": {"grids": GRIDS, "row_ends": True},
    "masked": {"image_objective": "masked"},
    "masked 2d": {"image_objective": "masked", "rope": "2d"},
    "2d": {"rope": "2d"},
    "bidirectional": {"image_attention": "bidirectional"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and processors by name, made once."""
    kept = {}

    def make(name):
        if name not in kept:
            if name in DRAWING:
                kept[name] = build(**DRAWING[name])
            else:
                folder = tmp_path_factory.mktemp("llama")
                across = CrossAttentionConfig(before=(1,), heads=2)
                kept[name] = reading_model(folder, across if name == "across" else None)
        return kept[name]

    return make


READING = ["reads", "across"]
ALL = [*DRAWING, *READING]


def replies(respond, samples, sampling, edits=None):
    result = [["", [], None] for _ in samples]
    for n, piece in respond(samples, sampling, edits):
        result[n][0] += piece.text
        result[n][1] += [piece.image.tobytes()] if piece.image is not None else []
        result[n][2] = piece.finish
    return result


def kinds(respond):
    return WORDS + (IMAGES if respond.codes_per_image else [])


def capture(compute):
    """What a CUDA graph does, on any device: the operations that were called once are called again
    on the same memory, and nothing of Python is."""
    tape = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tape.append((func, args, kwargs or {}, out))
            return out

    with Record():
        out = compute()

    def replay():
        for func, args, kwargs, held in tape:
            known = {memory(t) for t in tensors((args, kwargs))}
            for old, new in zip(tensors(held), tensors(func(*args, **kwargs)), strict=True):
                if memory(old) not in known:
                    old.copy_(new)
        return out

    return replay


def tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def memory(tensor):
    return getattr(tensor, "raw", tensor).untyped_storage().data_ptr()


@pytest.fixture
def captured(monkeypatch):
    """How many steps were replayed."""
    count = [0]

    def counted(compute):
        replay = capture(compute)

        def again():
            count[0] += 1
            return replay()

        return again

    counted.count = count
    return counted


@pytest.mark.parametrize("name", ALL)
def test_fixed_shapes_give_the_same_replies(name, made, captured):
    model, processor = made(name)
    plain = Generator(model, processor)
    static = Generator(model, processor, static=True)
    graphs = Generator(model, processor, static=True, capture=captured)
    for sampling in kinds(plain):
        expected = replies(plain, mixed(), sampling)
        assert replies(static, mixed(), sampling) == expected
        assert replies(graphs, mixed(), sampling) == expected
    assert (captured.count[0] > 0) == (name != "across")


@pytest.mark.parametrize("name", ALL)
def test_the_same_replies_on_an_accelerator(name, made, pretend):
    model, processor = made(name)
    respond = Generator(model, processor)
    expected = [replies(respond, mixed(), sampling) for sampling in kinds(respond)]
    with On(pretend, model):
        respond = Generator(model, processor)
        assert respond.steps.static
        found = [replies(respond, mixed(), sampling) for sampling in kinds(respond)]
    assert found == expected


@pytest.mark.parametrize("name", ["one size", "masked", *READING])
def test_the_host_waits_once_a_token(name, made, pretend, monkeypatch):
    """Between two steps one fetch at most, of the chosen ids, and one of what was drawn."""
    model, processor = made(name)
    with On(pretend, model):
        respond = Generator(model, processor)
        for sampling in (WORDS[1], *(IMAGES[1:3] if respond.codes_per_image else [])):
            with syncs() as waited, monkeypatch.context() as patch:
                patch.setattr(StaticStep, "__call__", noted(StaticStep.__call__, waited))
                patch.setattr(processor.codec, "decode_all", quiet(processor.codec.decode_all))
                replies(respond, mixed(), sampling)
            between = " ".join(waited).split("step")[1:]
            assert between
            assert set(between[:-1]) <= {" ", " tolist "}, between
            assert between[-1] in (" ", " tolist", "")


def noted(step, waited):
    def act(*given):
        waited.append("step")
        return step(*given)

    return act


def quiet(function):
    """A function whose waits do not count: an image is decoded once, when it is complete."""

    def act(*given):
        with syncs():
            return function(*given)

    return act


class On:
    """A model on another device for a while."""

    def __init__(self, device, model):
        self.device, self.model = device, model

    def __enter__(self):
        self.model.to(self.device)

    def __exit__(self, *_error):
        self.model.to("cpu")


def others(model, processor):
    """What else is asked of a model: edits, choices among drawings, likelihoods, looks."""
    respond = Generator(model, processor)
    found: list = [reply_log_likelihood(respond, [asked(s) for s in mixed()[:3]])]
    labels = [["red", "a circle"], ["is", "it", "what"], ["red", "red circle"]]
    found += list(label_log_likelihood(respond, mixed()[:3], labels))
    found += [one.share.flatten().tolist() for one in look(model, processor, mixed()[1], "red")]
    if respond.codes_per_image:
        mask = PIL.Image.new("L", (8, 8))
        mask.paste(255, (4, 4, 8, 8))
        edits = [inpaint(processor.codec, image(9), mask), None]
        edits.append(variation(processor.codec, image(8), 0.5, 3))
        sampling = SamplingParams(1.0, draw_first=True, guidance=2.0, image_steps=2)
        found.append(replies(respond, mixed()[:3], sampling, edits))
        drawn = draw(respond, ["red", "a circle"], sampling, candidates=3)
        found += [(d.best.tobytes(), d.tries) for d in drawn] + [[d.score] for d in drawn]
    return found


def asked(sample):
    return Sample((*sample.turns, assistant("red")))


@pytest.mark.parametrize("name", ALL)
def test_all_else_on_an_accelerator(name, made, pretend):
    model, processor = made(name)
    expected = others(model, processor)
    with On(pretend, model):
        found = others(model, processor)
    for own, there in zip(found, expected, strict=True):
        assert own == pytest.approx(there, rel=1e-4, abs=1e-6) if numbers(own) else own == there


def numbers(value):
    return isinstance(value, list) and all(isinstance(x, float) for x in value)


def test_a_step_that_cannot_be_captured_is_named_once_and_runs(made):
    def failing(compute):
        compute()
        raise RuntimeError("operation not permitted when stream is capturing")

    model, processor = made("one size")
    plain, respond = (
        Generator(model, processor),
        Generator(model, processor, static=True, capture=failing),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert replies(respond, mixed(), WORDS[0]) == replies(plain, mixed(), WORDS[0])
    shapes = [str(w.message) for w in told if "without a CUDA graph" in str(w.message)]
    assert shapes
    assert "operation not permitted" in shapes[0]
    assert len(set(shapes)) == len(shapes)


def test_replaced_weights_are_noticed(made):
    """A captured step reads the addresses that it was captured with."""
    model, processor = made("one size")
    respond = Generator(model, processor, static=True, capture=capture)
    before = replies(respond, mixed(), WORDS[0])
    kept = model.lm_head.weight.data
    try:
        model.lm_head.weight.data = kept.flip(0).contiguous()
        expected = replies(Generator(model, processor), mixed(), WORDS[0])
        assert replies(respond, mixed(), WORDS[0]) == expected != before
    finally:
        model.lm_head.weight.data = kept


@pytest.mark.parametrize("name", ["one size", "masked", "rows", "reads"])
def test_weights_in_bfloat16(name, made):
    model, processor = copy.deepcopy(made(name)[0]), made(name)[1]
    buffers = {key: value.dtype for key, value in model.named_buffers()}
    round_weights(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {key: value.dtype for key, value in model.named_buffers()} == buffers
    respond = Generator(model, processor, static=True, capture=capture)
    assert respond.precision == "bfloat16"
    for sampling in kinds(respond):
        assert {reply[2] for reply in replies(respond, mixed(), sampling)} <= {"stop", "length"}


def test_bytes_are_refused_where_nothing_multiplies_by_them(made, pretend):
    model, processor = made("reads")
    with On(pretend, model), pytest.raises(ConfigError, match="give bf16 or fp32"):
        Generator(model, processor, weights="int8")


def test_replies_of_one_model_may_be_read_in_turns(made):
    """Two generators at once have a cache each."""
    model, processor = made("one size")
    respond = Generator(model, processor, static=True)
    alone = [replies(respond, mixed(), sampling) for sampling in WORDS[:2]]
    pairs = zip(*(respond(mixed(), sampling) for sampling in (WORDS[1], WORDS[1])), strict=True)
    for one, two in pairs:
        assert one == two
    assert [replies(respond, mixed(), sampling) for sampling in WORDS[:2]] == alone
