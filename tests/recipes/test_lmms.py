"""The adapter to lmms-eval; only where that is installed (it needs torchvision)."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import PIL.Image
import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("lmms_eval.api.model")

from chiasm.core.errors import DataError
from chiasm.core.protocols import StreamChunk
from chiasm.recipes import lmms as adapter

RED, BLUE = (PIL.Image.new("RGB", (8, 8), name) for name in ("red", "blue"))
DOCS = [{"image": RED, "asked": "what colour?"}, {"image": BLUE, "asked": "which?"}]


def messages(doc):
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["asked"]}]
    return [{"role": "user", "content": content}]


def request(doc, **settings):
    return SimpleNamespace(args=("context", messages, settings, doc, "toy", "test"))


@pytest.fixture
def model(monkeypatch):
    seen = []

    def respond(samples, sampling):
        seen.append((len(samples), sampling))
        for i, sample in reversed(list(enumerate(samples))):
            red = sample.images[0].load().getpixel((0, 0)) == (255, 0, 0)
            yield i, StreamChunk("it is ")
            yield i, StreamChunk(f"{'red' if red else 'blue'}\nStop", finish="stop")

    monkeypatch.setattr(adapter, "responder", lambda run: respond)
    made = adapter.Chiasm.create_from_arg_string(
        "run=somewhere,max_new_tokens=9", {"batch_size": 8}
    )
    made.task_dict = {"toy": {"test": DOCS}}
    return made, seen


def test_requests_of_equal_settings_go_together_and_keep_their_order(model):
    made, seen = model
    asked = [request(i % 2, max_new_tokens=5, until=["\n"]) for i in range(10)] + [request(1)]
    texts = [reply.text for reply in made.generate_until(asked)]
    assert texts == ["it is red", "it is blue"] * 5 + ["it is blue\nStop"]
    assert [(count, s.max_tokens) for count, s in seen] == [(8, 5), (2, 5), (1, 9)]


def test_likelihoods_are_losses_of_the_right_document(model, monkeypatch):
    made, _ = model

    def likelihood(respond, samples):
        red = samples[0].images[0].load().getpixel((0, 0)) == (255, 0, 0)
        return [-1.0 if samples[0].turns[-1].text == ("it is red" if red else "no") else -5.0]

    monkeypatch.setattr(adapter, "reply_log_likelihood", likelihood)
    made.respond = lambda samples, sampling: iter([(0, StreamChunk("it is red", finish="stop"))])
    asked = [
        SimpleNamespace(args=("which?", text, lambda doc: [doc["image"]], doc, "toy", "test"))
        for text in (" it is red", "no")
        for doc in (0, 1)
    ]
    assert made.loglikelihood(asked) == [(1.0, True), (5.0, True), (5.0, False), (1.0, False)]


def test_sampling_follows_the_tasks_settings(model):
    made, _ = model
    assert made._sampling({"temperature": 0.7, "top_p": 0.9}).temperature == 0.7
    assert made._sampling({"temperature": 0.7, "do_sample": False}).temperature == 0
    assert made._sampling({"temperature": None, "top_p": None}).top_p == 1.0


def test_what_cannot_be_read_is_told():
    with pytest.raises(DataError, match="toy 3: content of type 'audio'"):
        adapter.to_sample([{"role": "user", "content": [{"type": "audio", "url": "x"}]}], "toy 3")


def test_lmms_eval_finds_the_class_through_its_registry():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(adapter.MANIFEST)
    assert registry.get_model_class("chiasm") is adapter.Chiasm
    named = [e for e in entry_points(group="lmms_eval.models") if e.name == "chiasm"]
    assert all(entry.value == "chiasm.recipes.lmms:MANIFEST" for entry in named)
