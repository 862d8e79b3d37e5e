"""The engine's batches of strangers against the generator's single replies."""

import random
import threading
import time
from dataclasses import replace

import pytest
import torch
from serve_toys import drawing_toy, image, pixels

from chiasm.core.batch import ImageBatch
from chiasm.core.errors import DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, assistant, user
from chiasm.generation.generator import Generator
from chiasm.serve.constrain import Constraints
from chiasm.serve.engine import Engine
from chiasm.serve.job import Job
from chiasm.serve.metrics import Metrics
from chiasm.serve.recent import Recent, RecentFeatures
from chiasm.serve.refusals import Busy, TooLongError
from chiasm.serve.schema import ResponseFormat
from chiasm.serve.stops import StopStrings

SAMPLES = [
    Sample((user("what is it?"),)),
    Sample((user(image(0), "what colour?"),)),
    Sample((user(image(1), image(2), "which?"),)),
    Sample((user(image(3), "what?"), assistant("red"), user("really?"))),
    Sample((user("is it a circle or is it red, what colour is it, what is it?"),)),
]
WARM = SamplingParams(temperature=1.0, max_tokens=14)
TEXT = [
    SamplingParams(max_tokens=14),
    WARM,
    replace(WARM, top_k=5, seed=3),
    replace(WARM, top_p=0.8, max_tokens=30, seed=4),
]
IMAGES = [
    SamplingParams(max_tokens=6, max_images=1),
    replace(WARM, draw_first=True, max_images=1, seed=5),
    replace(WARM, draw_first=True, max_images=1, guidance=2.0, seed=6),
    replace(WARM, max_images=2, guidance=1.5, seed=7),
]


class Heard:
    """A job and what it heard."""

    def __init__(self, sample, sampling, **settings):
        self.updates, self.ended = [], threading.Event()
        self.job = Job(sample, sampling, self.take, **settings)

    def take(self, update):
        self.updates.append(update)
        if update.last:
            self.ended.set()

    @property
    def text(self):
        return "".join(u.text for u in self.updates)

    @property
    def images(self):
        return [u.image.tobytes() for u in self.updates if u.image is not None]

    def wait(self):
        assert self.ended.wait(120), "no end"
        return self

    @property
    def error(self):
        return self.wait().updates[-1].error

    @property
    def reply(self):
        assert self.error is None
        return self.text, self.images, self.updates[-1].finish


def alone(respond, sample, sampling):
    """What the generator replies to one sample."""
    text, images, finish = "", [], None
    for _, piece in respond([sample], sampling):
        text, finish = text + piece.text, piece.finish
        images += [piece.image.tobytes()] if piece.image is not None else []
    return text, images, finish


@pytest.fixture
def engine(toys):
    engine = Engine("draws", toys["draws"], slots=3, waiting=100, metrics=Metrics())
    yield engine
    engine.stop()


def model(name, toys, more_toys):
    return (toys | more_toys)[name]


def together(engine, asked):
    """The replies of an engine that gets all its jobs before it starts, and is stopped after."""
    heard = [Heard(*pair) for pair in asked]
    for each in heard:
        engine.submit(each.job)
    engine.start()
    found = [each.reply for each in heard]
    engine.stop()
    return found


@pytest.mark.parametrize("name", ["draws", "reads", "draws-2d", "reads-across"])
def test_replies_in_company_equal_those_alone(name, toys, more_toys):
    respond = model(name, toys, more_toys)
    kinds = TEXT + (IMAGES if respond.codes_per_image else [])
    asked = [(sample, sampling) for sample in SAMPLES for sampling in kinds]
    random.Random(0).shuffle(asked)
    asked = asked if name in toys else asked[:12]
    expected = [alone(respond, *pair) for pair in asked]
    assert {reply[2] for reply in expected} == {"stop", "length"}
    if respond.codes_per_image:
        assert any(images for _, images, _ in expected)
    engine = Engine(name, respond, slots=5, waiting=len(asked))
    assert together(engine, asked) == expected
    assert not engine.cache.held


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_nor_do_they_depend_on_it_with_narrow_weights(weights, toys):
    reads = toys["reads"]
    respond = Generator(reads.model, reads.processor, weights=weights)
    asked = [(sample, sampling) for sample in SAMPLES for sampling in TEXT]
    expected = [alone(respond, *pair) for pair in asked]
    assert expected != [alone(reads, *pair) for pair in asked]  # the weights were used
    assert together(Engine("reads", respond, slots=5, waiting=len(asked)), asked) == expected


def test_a_cancelled_job_frees_its_rows_within_a_step(engine):
    heard = Heard(SAMPLES[0], SamplingParams(temperature=1.0, max_tokens=1500))
    heard.job.rule = Endless()
    engine.submit(heard.job)
    engine.start()
    while len(heard.updates) < 3:
        time.sleep(0.001)
    engine.cancel(heard.job)
    steps = value(engine.metrics.steps, "draws")
    while engine.cache.held:
        time.sleep(0.0005)
    assert value(engine.metrics.steps, "draws") <= steps + 1
    assert not heard.ended.is_set()
    other = Heard(SAMPLES[1], TEXT[0])
    engine.submit(other.job)
    assert other.reply == alone(engine.respond, SAMPLES[1], TEXT[0])


class Endless:
    """A rule under which no reply ends by itself: the letters only."""

    def allowed(self, size):
        found = torch.zeros(size, dtype=torch.bool)
        found[20:60] = True
        return found

    def take(self, token):
        pass


def value(metric, *labels):
    return metric.labels(*labels)._value.get()


def test_a_job_past_its_time_keeps_what_it_has(engine):
    heard = Heard(SAMPLES[0], SamplingParams(max_tokens=1500), rule=Endless())
    engine.submit(heard.job)
    engine.start()
    while len(heard.updates) < 3:
        time.sleep(0.001)
    heard.job.deadline = time.monotonic()
    text, _, finish = heard.reply
    assert finish == "length"
    assert text
    assert heard.updates[-1].usage.reply >= 3


def test_more_than_may_wait_are_sent_away(toys):
    engine = Engine("reads", toys["reads"], slots=1, waiting=2)  # not started: nothing leaves
    heard = [Heard(SAMPLES[0], TEXT[0]) for _ in range(2)]
    for each in heard:
        engine.submit(each.job)
    with pytest.raises(Busy) as caught:
        engine.submit(Heard(SAMPLES[0], TEXT[0]).job)
    assert 1 <= caught.value.seconds <= 60
    engine.start()
    for each in heard:
        each.wait()
    engine.stop()


def test_what_stops_tells_those_who_wait(toys):
    engine = Engine("reads", toys["reads"])
    heard = Heard(SAMPLES[0], TEXT[0])
    engine.submit(heard.job)
    engine._stopping = True
    engine.start()
    assert isinstance(heard.error, Busy)
    with pytest.raises(Busy):
        engine.submit(Heard(SAMPLES[0], TEXT[0]).job)


def test_one_bad_job_harms_no_other(engine):
    engine.start()
    processor = engine.respond.processor
    ((prompt, _),) = processor.prompts([Sample((user("?"),))])
    marks = processor.max_length - len(prompt) + 1  # the prompt alone fills the context
    long = Heard(Sample((user("red " * 3000),)), TEXT[0])
    full = Heard(Sample((user("?" * marks),)), TEXT[0])
    broken = Heard(SAMPLES[0], TEXT[0])
    broken.job.rule = Broken()
    good = Heard(SAMPLES[1], TEXT[1])
    for each in (long, full, broken, good):
        engine.submit(each.job)
    assert isinstance(long.error, DataError)
    assert isinstance(full.error, TooLongError)
    assert isinstance(broken.error, ZeroDivisionError)
    assert good.reply == alone(engine.respond, SAMPLES[1], TEXT[1])
    assert engine.alive
    assert not engine.cache.held


class Broken(Endless):
    def take(self, token):
        raise ZeroDivisionError


def test_a_failing_step_is_told_and_survived(monkeypatch):
    engine = Engine("draws", drawing_toy(), slots=3)
    broken = [Heard(sample, TEXT[0], rule=Endless()) for sample in SAMPLES[:3]]
    for each in broken:
        engine.submit(each.job)
    step, failures = engine._step, iter([True])

    def failing():
        if next(failures, False):
            raise RuntimeError("out of memory")
        step()

    monkeypatch.setattr(engine, "_step", failing)
    engine.start()
    assert all(isinstance(each.error, RuntimeError) for each in broken)
    later = Heard(SAMPLES[1], TEXT[2])
    engine.submit(later.job)
    assert later.reply == alone(engine.respond, SAMPLES[1], TEXT[2])
    engine.stop()


def test_a_reading_model_refuses_to_draw(toys):
    engine = Engine("reads", toys["reads"])
    with pytest.raises(NotGenerativeError, match="cannot draw"):
        engine.submit(Heard(SAMPLES[0], IMAGES[1]).job)


def test_stop_strings_end_a_reply_and_are_not_shown(engine):
    for seed in range(20):
        sampling = replace(WARM, max_tokens=30, seed=seed)
        whole, _, _ = alone(engine.respond, SAMPLES[4], sampling)
        if len(whole) > 8:
            break
    stop = whole[4:6]
    assert len(stop) == 2
    heard = Heard(SAMPLES[4], sampling, stop=StopStrings([stop]))
    engine.submit(heard.job)
    engine.start()
    text, _, finish = heard.reply
    assert (text, finish) == (whole[: whole.index(stop)], "stop")


def test_scores_are_log_probabilities_of_what_was_said(engine):
    heard = Heard(SAMPLES[1], SamplingParams(max_tokens=8), top=3)
    engine.submit(heard.job)
    engine.start()
    heard.wait()
    scores = [score for update in heard.updates for score in update.scores]
    said = engine.respond.processor.template.decode([score.id for score in scores])
    assert said == heard.text
    for score in scores:  # greedy: the likeliest was said
        assert score.top[0] == (score.id, score.logprob)
        assert len(score.top) == 3
        assert sum(torch.tensor([p for _, p in score.top]).exp()) <= 1 + 1e-5


def test_usage_counts_images_on_both_sides(engine):
    heard = Heard(SAMPLES[2], replace(WARM, draw_first=True, max_images=1))
    engine.submit(heard.job)
    engine.start()
    usage = heard.wait().updates[-1].usage
    codes = engine.respond.codes_per_image
    ((prompt, _),) = engine.respond.processor.prompts([SAMPLES[2]])
    assert (usage.prompt, usage.prompt_images) == (len(prompt), 2 * codes)
    assert (usage.reply, usage.reply_images) == (codes + 2, codes)


@pytest.mark.parametrize("name", ["draws", "reads"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_keeps_to_its_schema(name, temperature, toys):
    import json

    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    wanted = ResponseFormat.model_validate(
        {"type": "json_schema", "json_schema": {"schema": schema}}
    )
    engine = Engine(name, toys[name])
    constraints = Constraints(toys[name].processor.template)
    complete = 0
    for seed in range(4):
        sampling = SamplingParams(temperature=temperature, max_tokens=60, seed=seed)
        heard = Heard(SAMPLES[0], sampling, rule=constraints.rule(wanted))
        engine.submit(heard.job)
        if not seed:
            engine.start()
        text, _, finish = heard.reply
        if finish == "stop":
            said = json.loads(text)
            complete += 1
            assert set(said) == {"colour", "count"}
            assert said["colour"] in ("red", "blue")
            assert isinstance(said["count"], int)
    engine.stop()
    assert complete or temperature == 0  # a greedy toy may write one number for ever


def test_images_seen_lately_are_not_encoded_again(toys):
    respond = toys["reads"]
    engine = Engine("reads", respond)
    engine.start()
    calls = []
    handle = respond.model.vision.register_forward_hook(lambda *_: calls.append(1))
    try:
        replies = [Heard(SAMPLES[1], TEXT[0]) for _ in range(3)]
        for each in replies:
            engine.submit(each.job)
        assert len({each.reply[0] for each in replies}) == 1
    finally:
        handle.remove()
        engine.stop()
    assert len(calls) == 1


def test_what_was_used_longest_ago_is_forgotten_first():
    recent = Recent(30, lambda value: value)
    for name in "abc":
        recent[name] = 10
    assert recent.get("a") == 10
    recent["d"] = 10
    assert sorted(recent) == ["a", "c", "d"]
    recent["a"] = 25
    assert sorted(recent) == ["a"]
    recent["huge"] = 31
    assert not recent
    assert recent.weight == 0


def test_remembered_features_equal_the_encoder_s(toys):
    vision = toys["reads"].model.vision
    processor = contrastive_patches(vision)
    patches, grids = processor.images([pixels(0), pixels(1), pixels(0)])
    memory = RecentFeatures(1e6)
    with torch.no_grad():
        expected = vision(patches, grids)
        for _ in range(2):
            torch.testing.assert_close(memory(vision, ImageBatch(patches, grids)), expected)
    assert len(memory.held) == 2


def contrastive_patches(vision):
    from chiasm.data.images import ImageProcessor

    return ImageProcessor(vision.config.image_size, vision.config.patch_size)
