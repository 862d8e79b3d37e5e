"""What was computed of an earlier prompt is taken over: the same numbers, and less to compute."""

import pytest
import torch
from serve_toys import drawing_toy, image, reading_toy
from test_engine import Heard, alone

from chiasm.core.batch import pack
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Message, Sample, Text, assistant, user
from chiasm.mllm.config import AnyResConfig
from chiasm.serve.engine import Engine

LONG = "what colour is it? is it red or is it a circle, and is it a red circle at all?"
RULES = Message("system", (Text(LONG),))


def numbered(*turns):
    """(prompt, how many of its tokens an earlier one of the list has computed: "none", "words" up
    to the image, "image" with it)"""
    return Sample(turns)


DIALOGUES = [
    (numbered(RULES, user(image(1), LONG)), "none"),
    (numbered(RULES, user(image(1), LONG)), "image"),
    (numbered(RULES, user(image(1), "red?")), "image"),
    (numbered(RULES, user(image(2), LONG)), "words"),
    (numbered(RULES, user(LONG)), "words"),
    (numbered(RULES, user(image(1), LONG), assistant("red"), user("why?")), "image"),
    (numbered(RULES, user(image(2), LONG), assistant("red"), user(image(1))), "image"),
    (numbered(user(image(1), LONG)), "none"),
]


@pytest.fixture(scope="module")
def models(toys, more_toys, tmp_path_factory):
    cut = reading_toy(
        tmp_path_factory.mktemp("cut"), image_processing=AnyResConfig(((16, 32), (32, 16)))
    )
    whole = drawing_toy(image_attention="bidirectional")
    return toys | more_toys | {"reads-cut": cut, "draws-whole": whole}


@pytest.mark.parametrize("name", ["draws", "draws-2d", "draws-whole", "reads", "reads-cut"])
def test_a_continued_prompt_has_the_logits_of_a_whole_one(name, models):
    engine = Engine(name, models[name])
    respond = engine.respond
    for sample, kind in DIALOGUES:
        ((prompt, _),) = respond.processor.prompts([sample])
        rest, cache = engine.prefixes.split(prompt)
        start = len(prompt) - len(rest)
        slots = engine._is_image(prompt.input_ids)
        first = int(slots.argmax()) if slots.any() else len(prompt)
        assert {"none": start == 0, "words": 16 <= start <= first, "image": start > first}[kind]
        with torch.inference_mode():
            made = cache or respond.model.new_cache()
            continued = respond.model(pack([[rest]]), made)[0, -1]
            whole_cache = respond.model.new_cache()
            whole = respond.model(pack([[prompt]]), whole_cache)[0, -1]
        torch.testing.assert_close(continued, whole, atol=2e-5, rtol=1e-4)
        assert len(made) == len(whole_cache) == len(prompt)
        engine.prefixes.keep(prompt, made)


@pytest.mark.parametrize("name", ["draws", "reads", "reads-across"])
def test_replies_are_those_without(name, models):
    """Cross-attention keeps images beside keys and values: there only words are taken over."""
    respond, sampling = models[name], SamplingParams(temperature=1.0, max_tokens=8)
    expected = [alone(respond, sample, sampling) for sample, _ in DIALOGUES]
    engine = Engine(name, respond, slots=4)
    engine.start()
    found = []
    for sample, kind in DIALOGUES:
        heard = Heard(sample, sampling)
        engine.submit(heard.job)
        found.append(heard.reply)
        cached = heard.updates[-1].usage.cached
        if name != "reads-across":
            assert (cached > 0) == (kind != "none")
    engine.stop()
    assert found == expected


def test_the_oldest_are_forgotten(toys):
    engine = Engine("reads", toys["reads"], remember=100_000)
    for number in range(40):
        sample = numbered(user(image(number), LONG))
        ((prompt, _),) = engine.respond.processor.prompts([sample])
        cache = engine.respond.model.new_cache()
        with torch.inference_mode():
            engine.respond.model(pack([[prompt]]), cache)
        engine.prefixes.keep(prompt, cache)
        assert engine.prefixes.held.weight <= 100_000
    assert 1 < len(engine.prefixes.held) < 40


def test_of_a_prompt_and_its_continuation_the_longer_is_kept(toys):
    engine = Engine("reads", toys["reads"])
    engine.start()
    for sample, _ in (DIALOGUES[0], DIALOGUES[1], DIALOGUES[5]):
        heard = Heard(sample, SamplingParams(max_tokens=2))
        engine.submit(heard.job)
        heard.wait()
    engine.stop()
    # The dialogue begins as the question does, but for the prompt for a reply at its end.
    assert len(engine.prefixes.held) <= 2
