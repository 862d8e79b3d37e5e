"""OpenAI's own client against toys of each route."""

import base64
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import PIL.Image
import pytest
from serve_toys import KEY, Background, data_url, encoded, http, image_part, pixels

from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, Video, user
from chiasm.generation.edit import inpaint
from chiasm.serve.embeddings import embed
from chiasm.serve.limits import Limits


def asked(*parts):
    return [{"role": "user", "content": list(parts)}]


def say(text):
    return [{"role": "user", "content": text}]


def words(text):
    return {"type": "text", "text": text}


def alone(respond, sample, sampling):
    text, images, finish = "", [], None
    for _, piece in respond([sample], sampling):
        text, finish = text + piece.text, piece.finish
        images += [piece.image.tobytes()] if piece.image is not None else []
    return text, images, finish


def decoded(url):
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_models(client):
    found = {model.id: model.capabilities for model in client.models.list()}
    assert found == {"draws": ["chat", "images"], "reads": ["chat"], "embeds": ["embeddings"]}
    assert client.models.retrieve("reads").owned_by == "chiasm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize("model", ["draws", "reads"])
def test_chat_about_an_image_equals_the_generator_s_reply(model, client, toys):
    image = pixels(3, (12, 10))
    reply = client.chat.completions.create(
        model=model, messages=asked(image_part(image), words("what colour?")), max_tokens=12
    )
    sample = Sample((user(Image(image), "what colour?"),))
    text, _, finish = alone(toys[model], sample, SamplingParams(max_tokens=12))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (text, finish)
    assert reply.object == "chat.completion"
    ((prompt, _),) = toys[model].processor.prompts([sample])
    assert reply.usage.prompt_tokens == len(prompt)
    codec = toys[model].processor.codec
    image_tokens = codec.codes_per_image or codec.tokens(image.size)
    assert reply.usage.prompt_tokens_details.image_tokens == image_tokens
    assert reply.usage.total_tokens == len(prompt) + reply.usage.completion_tokens


def test_stream_says_the_same_with_usage(client):
    wanted = {
        "model": "reads",
        "messages": asked(image_part(pixels(1)), image_part(pixels(2)), words("which?")),
        "max_tokens": 20,
        "temperature": 1.0,
        "seed": 7,
    }
    whole = client.chat.completions.create(**wanted)
    chunks = list(
        client.chat.completions.create(
            **wanted, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert not any(finishes[:-1])
    assert chunks[-1].choices == []
    streamed, told = chunks[-1].usage, whole.usage
    for count in ("prompt_tokens", "completion_tokens", "completion_tokens_details"):
        assert getattr(streamed, count) == getattr(told, count)
    assert streamed.prompt_tokens_details.cached_tokens > 0  # the same prompt a second time


def test_a_stream_without_usage_has_none(client):
    chunks = list(client.chat.completions.create(model="reads", messages=say("red"), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_choices_are_seeded_one_after_the_other(client):
    wanted = {"model": "draws", "messages": say("red"), "temperature": 1.0, "max_tokens": 10}
    several = client.chat.completions.create(**wanted, seed=5, n=3)
    single = [client.chat.completions.create(**wanted, seed=5 + i) for i in range(3)]
    texts = [choice.message.content for choice in several.choices]
    assert texts == [reply.choices[0].message.content for reply in single]
    assert len(set(texts)) > 1
    total = sum(reply.usage.completion_tokens for reply in single)
    assert several.usage.completion_tokens == total


def test_stop_strings_and_logprobs(client):
    wanted = {"model": "reads", "messages": say("what is it?"), "max_tokens": 20}
    wanted |= {"temperature": 1.0, "extra_body": {"top_k": 1}}  # greedy, but drawn
    for question_ in ("what is it?", "red?", "a circle", "is it?"):
        wanted["messages"] = say(question_)
        plain = client.chat.completions.create(**wanted, logprobs=True, top_logprobs=2)
        if len(plain.choices[0].message.content) > 6:
            break
    text, scores = plain.choices[0].message.content, plain.choices[0].logprobs.content
    assert b"".join(bytes(score.bytes) for score in scores).decode(errors="replace") == text
    for score in scores:
        assert score.logprob == max(top.logprob for top in score.top_logprobs) <= 0
        assert bytes(score.bytes).decode(errors="replace") == score.token
        assert len(score.top_logprobs) == 2
    cut = client.chat.completions.create(**wanted, stop=text[3:5])
    assert cut.choices[0].message.content == text[: text.index(text[3:5])]
    assert cut.choices[0].finish_reason == "stop"


def test_json_object_and_schema(client):
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"],
              "additionalProperties": False}  # fmt: skip
    reply = client.chat.completions.create(
        model="draws",
        messages=say("is it red?"),
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert isinstance(json.loads(reply.choices[0].message.content)["red"], bool)


def test_images_in_an_answer(client, toys):
    wanted = {
        "model": "draws",
        "messages": say("a red circle"),
        "seed": 3,
        "temperature": 1.0,
        "top_p": 0.9,
        "extra_body": {"modalities": ["image"], "guidance": 2.0, "progress": True},
    }
    sampling = SamplingParams(1.0, 0, 0.9, guidance=2.0, max_images=1, draw_first=True, seed=3)
    expected = alone(toys["draws"], Sample((user("a red circle"),)), sampling)
    message = client.chat.completions.create(**wanted).choices[0].message
    assert [decoded(i["image_url"]["url"]).tobytes() for i in message.images] == expected[1]
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**wanted, stream=True)]
    images = [part for delta in deltas for part in getattr(delta, "images", None) or ()]
    assert [decoded(i["image_url"]["url"]).tobytes() for i in images] == expected[1]
    progress = [d.drawing["done"] for d in deltas if getattr(d, "drawing", None)]
    assert progress == list(range(1, toys["draws"].codes_per_image + 1)) or progress[0] == 0


def test_an_image_is_shown_while_it_is_drawn(client, toys):
    """Row by row of its codes: what is drawn is opaque, the rest is not there yet."""
    asked = {"modalities": ["image"], "progress": True}
    wanted = {"model": "draws", "messages": say("red"), "seed": 1, "extra_body": asked}
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**wanted, stream=True)]
    drawing = [delta.drawing for delta in deltas if getattr(delta, "drawing", None)]
    sketches = [(d["done"], d["image_url"]["url"]) for d in drawing if "image_url" in d]
    ((rows, columns),) = toys["draws"].processor.codec.grids
    assert [done for done, _ in sketches] == [columns * row for row in range(1, rows + 1)]
    for row, (_, url) in enumerate(sketches, 1):
        shown = PIL.Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        opaque = np.asarray(shown.getchannel("A"))
        edge = opaque.shape[0] * row // rows
        assert (opaque[:edge] == 255).all()
        assert not opaque[edge:].any()


def filmed(frames=8, size=(24, 16), kind="mp4"):
    """The bytes of a clip whose frames are of different shades."""
    av = pytest.importorskip("av")
    held = io.BytesIO()
    with av.open(held, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 30 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return held.getvalue()


def clip_part(data, kind="mp4"):
    url = f"data:video/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


@pytest.mark.parametrize("model", ["draws", "reads"])
def test_a_clip_is_seen_as_frames(model, client, toys, tmp_path):
    file = tmp_path / "clip.mp4"
    file.write_bytes(filmed())
    sample = Sample((user(Video(file), "what?"),))
    expected = alone(toys[model], sample, SamplingParams(max_tokens=8))
    parts = [clip_part(file.read_bytes()), {"type": "text", "text": "what?"}]
    reply = client.chat.completions.create(model=model, messages=say(parts), max_tokens=8)
    assert reply.choices[0].message.content == expected[0]
    assert reply.usage.prompt_tokens_details.image_tokens == 8 * 4  # eight frames


HOSTILE = {
    "words": b"no clip at all",
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
}


@pytest.mark.parametrize("name", [*HOSTILE, "cut off", "two", "fetched"])
def test_clips_that_are_refused(name, client):
    parts = [clip_part(HOSTILE.get(name, b""))]
    if name == "cut off":
        parts = [clip_part(filmed(60)[:-900])]
    elif name == "two":
        parts = [clip_part(filmed())] * 2
    elif name == "fetched":
        parts = [{"type": "video_url", "video_url": {"url": "http://127.0.0.1/a.mp4"}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="reads", messages=say(parts), max_tokens=8)
    assert "/" not in refused.value.body["message"].replace("data:video/mp4", "")


def test_the_pixels_of_a_clip_are_counted_before_they_are_decoded(toys):
    with Background({"reads": toys["reads"]}, Limits(footage=8 * 24 * 16 - 1)) as strict:
        for frames in (7, 8):
            wanted = {"messages": say([clip_part(filmed(frames))]), "max_tokens": 2}
            if frames == 7:
                assert strict.client().chat.completions.create(model="reads", **wanted)
                continue
            with pytest.raises(openai.BadRequestError, match="8 frames of 24x16"):
                strict.client().chat.completions.create(model="reads", **wanted)


def test_a_drawn_image_goes_back_into_the_conversation(client):
    wanted = {"model": "draws", "extra_body": {"modalities": ["text", "image"]}, "seed": 1}
    first = client.chat.completions.create(messages=say("draw red"), **wanted)
    message = first.choices[0].message.model_dump(exclude_none=True)
    message.setdefault("images", [image_part(pixels(0))])
    later = [*say("draw red"), message, *say("what is it?")]
    second = client.chat.completions.create(model="draws", messages=later, max_tokens=4)
    assert second.usage.prompt_tokens_details.image_tokens > 0


@pytest.mark.parametrize("kind", ["b64_json", "url"])
def test_image_generation(kind, client, toys):
    reply = client.images.generate(
        model="draws", prompt="red", n=2, response_format=kind, extra_body={"seed": 4}
    )
    found = [
        decoded(item.url if item.url else f",{item.b64_json}").tobytes() for item in reply.data
    ]
    for i, image in enumerate(found):
        sampling = SamplingParams(
            1.0, 0, 0.95, guidance=1.5, max_tokens=1, max_images=1, draw_first=True, seed=4 + i
        )
        assert alone(toys["draws"], Sample((user("red"),)), sampling)[1] == [image]
    assert reply.size == "8x8"
    assert reply.usage.output_tokens == 2 * (toys["draws"].codes_per_image + 2)


def test_embeddings(client, toys):
    texts = ["red", "a circle"]
    reply = client.embeddings.create(model="embeds", input=texts)  # asks for base64 by itself
    vectors = np.array([item.embedding for item in reply.data])
    np.testing.assert_allclose(vectors, toys["embeds"].embed_texts(texts).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    image = pixels(4)
    mixed = client.embeddings.create(
        model="embeds", input=["red", image_part(image)], encoding_format="float"
    )
    expected = embed(toys["embeds"], ["red", image]).numpy()
    np.testing.assert_allclose([i.embedding for i in mixed.data], expected, atol=1e-6)
    one = client.embeddings.create(model="embeds", input="red")
    assert [item.index for item in one.data] == [0]


def test_unknown_fields_are_ignored(client, running):
    """What Open WebUI sends with a question."""
    payload = {
        "stream": False,
        "model": "reads",
        "messages": [{"role": "user", "content": "is it red?", "id": "1", "timestamp": 1}],
        "params": {},
        "tool_servers": [],
        "features": {"image_generation": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "someone"},
        "model_item": {"id": "reads", "owned_by": "openai"},
        "session_id": "s",
        "chat_id": "c",
        "id": "i",
        "background_tasks": {"title_generation": True},
        "filter_ids": None,
        "tools": None,
        "presence_penalty": 0,
        "frequency_penalty": None,
        "logit_bias": {},
        "user": "someone",
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "max_tokens": 4,
    }
    head = {"Authorization": f"Bearer {KEY}"}
    found = http.post(f"{running.url}/v1/chat/completions", json=payload, headers=head)
    assert found.status_code == 200
    assert found.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "embeds"}, openai.BadRequestError, "not_a_chat_model", "model"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        ({"temperature": 9}, openai.BadRequestError, None, "temperature"),
        ({"messages": say("red " * 3000)}, openai.BadRequestError, None, "messages"),
        ({"n": 99}, openai.BadRequestError, None, "n"),
        ({"stop": ["a"] * 9}, openai.BadRequestError, None, "stop"),
        (
            {"messages": [{"role": "assistant", "content": "red"}]},
            openai.BadRequestError,
            None,
            "messages",
        ),
        (
            {"messages": asked({"type": "input_audio", "input_audio": {}})},
            openai.BadRequestError,
            None,
            "messages.0.content.0",
        ),
        (
            {"extra_body": {"modalities": ["text", "image"]}},
            openai.BadRequestError,
            "not_generative",
            "model",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {
                "type": "nonsense"}}}},
            openai.BadRequestError,
            None,
            "response_format.json_schema",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_a_status_and_a_place(client, change, error, code, param, stream):
    wanted = {"model": "reads", "messages": say("red"), "stream": stream} | change
    with pytest.raises(error) as caught:
        client.chat.completions.create(**wanted)
    assert caught.value.code == code
    assert caught.value.param == param
    assert caught.value.body["message"]


def test_drawing_and_embedding_need_models_that_can(client):
    with pytest.raises(openai.BadRequestError, match="use draws") as caught:
        client.images.generate(model="reads", prompt="red")
    assert caught.value.code == "not_generative"
    with pytest.raises(openai.BadRequestError, match="use embeds"):
        client.embeddings.create(model="draws", input="red")
    for wrong in ([], [""], [["1"]], "x " * 2_000_000):
        with pytest.raises(openai.APIStatusError) as refused:
            client.embeddings.create(model="embeds", input=wrong)
        assert 400 <= refused.value.status_code < 500


def test_a_wrong_key_is_told_on_every_route(running):
    with pytest.raises(openai.AuthenticationError):
        running.client("wrong").models.list()
    for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/nothing"):
        assert http.get(running.url + path).status_code == 401
    for path in ("/health", "/ready", "/"):
        assert http.get(running.url + path).status_code == 200


def test_a_full_queue_is_told_with_when_to_come_back(toys):
    with Background({"reads": toys["reads"]}, Limits(), slots=1, waiting=1) as small:
        wanted = {"model": "reads", "messages": say("what is it?"), "n": 8}
        with pytest.raises(openai.RateLimitError) as caught:
            small.client().chat.completions.create(**wanted, extra_body={"temperature": 1})
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "server_busy"
        assert small.idle()


def test_32_requests_at_once_equal_their_single_runs(running, toys):
    """Text and images, streamed or not, both routes and embeddings, all side by side."""
    client = running.client()

    def text(i):
        model = ("draws", "reads")[i % 2]
        sampling = SamplingParams(temperature=i % 3 / 2, top_k=i % 4 * 3, max_tokens=6 + i, seed=i)
        sample = Sample((user(Image(pixels(i % 5)), f"what colour {i}?"),))

        def call():
            chunks = client.chat.completions.create(
                model=model,
                messages=asked(image_part(pixels(i % 5)), words(f"what colour {i}?")),
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=i,
                stream=True,
                extra_body={"top_k": sampling.top_k},
            )
            return "".join(c.choices[0].delta.content or "" for c in chunks)

        return call, alone(toys[model], sample, sampling)[0]

    def drawn(i):
        guidance = 1.0 + i % 2
        sampling = SamplingParams(
            1.0, 0, 0.95, guidance=guidance, max_tokens=1, max_images=1, draw_first=True, seed=i
        )
        extra = {"seed": i, "guidance": guidance}

        def call():
            reply = client.images.generate(model="draws", prompt=f"red {i}", extra_body=extra)
            return decoded(f",{reply.data[0].b64_json}").tobytes()

        return call, alone(toys["draws"], Sample((user(f"red {i}"),)), sampling)[1][0]

    def vector(i):
        call = lambda: client.embeddings.create(model="embeds", input=f"red {i}")  # noqa: E731
        expected = toys["embeds"].embed_texts([f"red {i}"])[0].tolist()
        return lambda: call().data[0].embedding, pytest.approx(expected, abs=1e-6)

    kinds = [text, text, drawn, vector]
    pairs = [kinds[i % 4](i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda pair: pair[0](), pairs))
    for got, (_, expected) in zip(found, pairs, strict=True):
        assert got == expected
    assert running.idle()


def test_metrics_count_what_clients_saw(running, client):
    def counted(text, name, **labels):
        for line in text.splitlines():
            told = all(f'{k}="{v}"' in line for k, v in labels.items())
            if line.startswith(f"{name}{{") and told:
                return float(line.rpartition(" ")[2])
        return 0.0

    def read():
        head = {"Authorization": f"Bearer {KEY}"}
        return http.get(f"{running.url}/metrics", headers=head).text

    before = read()
    reply = client.chat.completions.create(model="reads", messages=say("red"), max_tokens=5)
    after = read()

    def grown(name, **labels):
        return counted(after, name, **labels) - counted(before, name, **labels)

    assert grown("chiasm_prompt_tokens_total", model="reads") == reply.usage.prompt_tokens
    assert grown("chiasm_text_tokens_total", model="reads") == reply.usage.completion_tokens
    assert grown("chiasm_replies_total", model="reads", how="done") == 1
    route = {"route": "/v1/chat/completions", "status": "200"}
    assert grown("chiasm_requests_total", **route) == 1
    assert math.isclose(counted(after, "chiasm_active_rows", model="reads"), 0)


def test_the_page_and_its_files_come_without_a_key(running):
    page = http.get(running.url + "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("app.js", "api.js", "camera.js", "images.js", "style.css", "icon.svg"):
        assert http.get(f"{running.url}/static/{name}").status_code == 200
    assert http.get(f"{running.url}/static/../app.py").status_code in (401, 404)
    assert "://" not in page.text.replace("http://www.w3.org", "")


def test_a_data_url_in_short_form_is_read(client):
    part = {"type": "image_url", "image_url": data_url(pixels(0))}
    reply = client.chat.completions.create(model="reads", messages=asked(part), max_tokens=2)
    assert reply.usage.prompt_tokens_details.image_tokens > 0


@pytest.mark.parametrize("masked", [False, True])
def test_image_edits_are_forms_and_equal_the_generator_s(masked, client, toys):
    respond, image = toys["draws"], pixels(2, (8, 8))
    mask = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 8))  # transparent: to be drawn anew
    given = {"mask": ("mask.png", encoded(mask), "image/png")} if masked else {}
    reply = client.images.edit(
        model="draws",
        image=("image.png", encoded(image), "image/png"),
        prompt="red",
        n=2,
        extra_body={"seed": 4},
        **given,
    )
    half = PIL.Image.new("L", (8, 8))
    half.paste(255, (0, 0, 4, 8))
    edit = inpaint(respond.processor.codec, image, half) if masked else None
    asked_ = (user("red") if masked else user(Image(image), "red"),)
    for i, item in enumerate(reply.data):
        sampling = SamplingParams(
            1.0, 0, 0.95, guidance=1.5, max_tokens=1, max_images=1, draw_first=True, seed=4 + i
        )
        expected = [
            p.image.tobytes() for _, p in respond([Sample(asked_)], sampling, [edit]) if p.image
        ]
        assert [decoded(f",{item.b64_json}").tobytes()] == expected


def test_several_images_to_edit_and_what_is_refused(client, running):
    files = [("a.png", encoded(pixels(i)), "image/png") for i in range(2)]
    reply = client.images.edit(model="draws", image=files, prompt="both")
    assert reply.usage.input_tokens_details.image_tokens > 0
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(model="reads", image=files[0], prompt="red")
    assert caught.value.code == "not_generative"
    for wrong in (
        {"image": files, "mask": files[0]},
        {"image": [("a.png", b"no image", "image/png")]},
        {"image": files * 9},
        {"image": files[0], "mask": ("m.png", encoded(PIL.Image.new("L", (8, 8))), "image/png")},
    ):
        with pytest.raises(openai.BadRequestError):
            client.images.edit(model="draws", prompt="red", **wrong)
    head = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\n\r\n", b"\0" * 1000, b"--x\r\nA: b\r\n\r\n" * 90):
        found = http.post(f"{running.url}/v1/images/edits", content=body, headers=head)
        assert found.status_code == 400, found.text


def test_every_class_of_error_the_client_knows(client, running, toys):
    small = {"model": "reads", "messages": say("red")}
    url = f"{running.url}/v1"
    gone = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        gone.chat.completions.create(**small)
    hasty = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=1e-4)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(**small)
    with pytest.raises(openai.AuthenticationError):
        running.client("wrong").chat.completions.create(**small)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**(small | {"model": "nothing"}))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**(small | {"n": 99}))
    with Background({"reads": toys["reads"]}, Limits(seconds=-1.0)) as late:
        with pytest.raises(openai.InternalServerError) as caught:  # 503: no row became free
            late.client().chat.completions.create(**small)
        assert caught.value.response.headers["retry-after"]
