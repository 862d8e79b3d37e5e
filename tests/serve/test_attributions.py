"""Where a model looked: the shares against differences, for both routes; and its HTTP."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from serve_toys import KEY, http, image, image_part, pixels

from chiasm.core import aliases
from chiasm.core.batch import IGNORE, pack
from chiasm.core.sample import Sample, user
from chiasm.generation.attribution import STEPS, Look, look, worth

SAMPLE = Sample((user(image(1), image(2), "which is red?"),))
ROUTES = ["draws", "draws-2d", "reads", "reads-across"]


@pytest.fixture(params=ROUTES)
def respond(request, toys, more_toys):
    return (toys | more_toys)[request.param]


def likelihood(respond, encoded, seen):
    batch = pack([[encoded]])
    wanted = batch.labels != IGNORE
    logits = respond.model.logits(respond.model(batch, seen=seen)[wanted])
    return logits.log_softmax(-1).gather(1, batch.labels[wanted][:, None]).double().sum()


def way_of(respond, encoded):
    """The images as they enter the model, and each as the mean of its places."""
    with torch.no_grad():
        image = respond.model.seen(pack([[encoded]]))
        halves = image.chunk(2)
        return image, torch.cat([half.mean(0, keepdim=True).expand_as(half) for half in halves])


def test_shares_are_what_a_place_adds_on_the_way_to_the_image(respond, request):
    if "reads-across" in request.node.name:
        pytest.skip("a random one looks too little for differences in fp32")
    found = look(respond.model, respond.processor, SAMPLE, "red circle")
    assert len(found) == 2
    encoded = respond.processor.alternatives(SAMPLE, ["red circle"])
    image, blank = way_of(respond, encoded)
    told = np.zeros(len(image))
    with torch.no_grad():
        for step in range(STEPS):
            at = blank + (step + 0.5) / STEPS * (image - blank)
            for place in range(len(image)):
                ends = []
                for ahead in (-0.03, 0.03):
                    changed = at.clone()
                    changed[place] += ahead * (image - blank)[place]
                    ends.append(likelihood(respond, encoded, changed))
                told[place] += float(ends[1] - ends[0]) / 0.06
    for one, own in zip(found, np.split(told.clip(0), 2), strict=True):
        expected = (own / own.sum()).reshape(one.share.shape)
        assert expected.max() > 1.1 / expected.size  # not flat: there is something to get right
        np.testing.assert_allclose(one.share, expected, atol=0.02)
        assert one.share.sum() == pytest.approx(1)


def test_the_places_together_are_worth_what_the_image_is(respond):
    encoded = respond.processor.alternatives(SAMPLE, ["red circle"])
    image, blank = way_of(respond, encoded)
    with torch.no_grad():
        whole = likelihood(respond, encoded, image) - likelihood(respond, encoded, blank)
    found = worth(respond.model, encoded)
    # Steps leave a little: of what the places say, for and against.
    assert float(found.sum()) == pytest.approx(float(whole), abs=0.03 * float(found.abs().sum()))


def test_nothing_is_left_behind(respond):
    before = {name: p.grad for name, p in respond.model.named_parameters()}
    with torch.inference_mode():  # as the engine's thread calls it
        look(respond.model, respond.processor, SAMPLE, "red")
    assert {name: p.grad for name, p in respond.model.named_parameters()} == before
    assert look(respond.model, respond.processor, Sample((user("red?"),)), "true") == []


def test_the_image_shown_is_tinted_where_the_share_is_high():
    grey = PIL.Image.new("RGB", (64, 32), (100, 100, 100))
    share = np.zeros((2, 4), np.float32)
    share[0, 3] = 1.0
    shown = np.asarray(Look(grey, share).shown()).astype(int)
    assert shown.shape == (128, 256, 3)
    assert shown[100, 20].tolist() == [100, 100, 100]
    red, _, blue = shown[20, 240]
    assert red > 200
    assert blue < 60


def test_a_codec_shows_images_as_the_model_sees_them(toys):
    for respond in (toys["draws"], toys["reads"]):
        codec = respond.processor.codec
        encoded = respond.processor.alternatives(SAMPLE, ["red"])
        shown = codec.shown(encoded)
        assert len(shown) == 2
        again = [slot for one in shown for slot in codec.encode([one])]
        if respond.codes_per_image:
            expected = [codec.decode(torch.from_numpy(slot.input_ids[1:-1])) for slot in again]
            assert all(one.size == other.size for one, other in zip(shown, expected, strict=True))
        else:
            patches = np.concatenate([slot.image_patches for slot in again])
            np.testing.assert_allclose(patches, encoded.image_patches, atol=0.01)


def asked(running, key=KEY, route="/v1/attributions", **changes):
    parts = [image_part(pixels(1)), {"type": "text", "text": "what colour?"}]
    told = {"model": "reads", "messages": [{"role": "user", "content": parts}], "reply": "red"}
    headers = {"Authorization": f"Bearer {key}"}
    return http.post(f"{running.url}{route}", json={**told, **changes}, headers=headers)


@pytest.mark.parametrize("old", aliases.ROUTES)
def test_a_route_of_an_earlier_version_answers_too(old, running):
    one, other = asked(running), asked(running, route=old)
    assert one.status_code == other.status_code == 200
    assert one.json() == other.json()


@pytest.mark.parametrize("model", ["draws", "reads"])
def test_the_route_answers_with_an_image_and_shares(model, running, toys):
    answer = asked(running, model=model)
    assert answer.status_code == 200
    (one,) = answer.json()["data"]
    sample = Sample((user(image(1), "what colour?"),))
    (expected,) = look(toys[model].model, toys[model].processor, sample, "red")
    np.testing.assert_allclose(one["share"], expected.share, atol=1e-4)
    kind, _, content = one["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(content)))
    assert shown.tobytes() == expected.shown().tobytes()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"key": "wrong"}, 401),
        ({"reply": ""}, 400),
        ({"reply": None}, 400),
        ({"model": "nobody"}, 404),
        ({"model": "embeds"}, 400),
        ({"reply": "red " * 3000}, 400),
        ({"messages": [{"role": "assistant", "content": "red"}]}, 400),
    ],
)
def test_what_cannot_be_told_is_refused(changes, status, running):
    answer = asked(running, **changes)
    assert answer.status_code == status
    assert "/" not in answer.json()["error"]["message"].replace("/v1/models", "")


def test_looks_and_replies_take_turns(running, client):
    """Errands run between steps: neither changes the other."""

    def say(number):
        parts = [image_part(pixels(number)), {"type": "text", "text": "what?"}]
        messages = [{"role": "user", "content": parts}]
        reply = client.chat.completions.create(model="reads", messages=messages, max_tokens=12)
        return reply.choices[0].message.content

    expected = [say(number) for number in range(6)]
    with ThreadPoolExecutor(12) as pool:
        looked = [pool.submit(asked, running) for _ in range(6)]
        said = list(pool.map(say, range(6)))
        assert {each.result().status_code for each in looked} == {200}
    assert said == expected
    assert running.idle()
