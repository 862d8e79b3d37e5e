"""The engine on an accelerator: the same replies, and one wait for the device a step."""

import random

import pytest
from serve_toys import drawing_toy
from test_engine import IMAGES, SAMPLES, TEXT, Heard, alone, together

from chiasm.core.sample import Sample, assistant, user
from chiasm.generation.generator import Generator
from chiasm.generation.steps import StaticStep
from chiasm.serve.engine import Engine
from pretend_device import syncs


@pytest.fixture
def moved(pretend):
    """Puts a model on the accelerator for the rest of a test."""
    held = []

    def move(respond):
        held.append(respond.model.to(pretend))
        return Generator(respond.model, respond.processor)

    yield move
    for model in held:
        model.to("cpu")


@pytest.mark.parametrize("name", ["draws", "reads"])
def test_replies_in_company_equal_those_of_a_cpu(name, toys, moved):
    respond = toys[name]
    kinds = TEXT[1:3] + (IMAGES[1:3] if respond.codes_per_image else [])
    asked = [(sample, sampling) for sample in SAMPLES[:4] for sampling in kinds]
    random.Random(0).shuffle(asked)
    expected = [alone(respond, *pair) for pair in asked]
    engine = Engine(name, moved(respond), slots=5, waiting=len(asked))
    assert together(engine, asked) == expected
    assert not engine.cache.held


def test_a_prompt_goes_on_from_an_earlier_one(toys, moved):
    first = user("is it a circle or is it red, what colour is it, what is it?")
    samples = [Sample((first,)), Sample((first, assistant("red"), user("really?")))]
    expected = [alone(toys["draws"], sample, TEXT[1]) for sample in samples]
    engine = Engine("draws", moved(toys["draws"]))
    engine.start()
    heard = []
    for sample in samples:
        heard.append(Heard(sample, TEXT[1]))
        engine.submit(heard[-1].job)
        heard[-1].wait()
    engine.stop()
    assert [each.reply for each in heard] == expected
    assert heard[1].updates[-1].usage.cached > 0


def test_a_step_fetches_once_for_all_jobs(moved, monkeypatch):
    """With text, drawings, guidance and scores side by side."""
    engine = Engine("draws", moved(drawing_toy()), slots=8)
    asked = [(SAMPLES[i], (TEXT + IMAGES)[i + 2]) for i in range(4)]
    heard = [Heard(*pair, top=3 * (i == 1)) for i, pair in enumerate(asked)]
    step, decode = StaticStep.__call__, engine.respond.processor.codec.decode_all

    def quiet(*given):
        with syncs():  # an image is decoded once, when it is complete
            return decode(*given)

    with syncs() as waited:
        monkeypatch.setattr(
            StaticStep, "__call__", lambda *given: waited.append("step") or step(*given)
        )
        monkeypatch.setattr(engine.respond.processor.codec, "decode_all", quiet)
        for each in heard:
            engine.submit(each.job)
        engine.start()
        for each in heard:
            each.wait()
        engine.stop()
    between = " ".join(waited).split("step")[1:]
    assert len(between) > 10
    assert {part.strip() for part in between} == {"tolist"}
