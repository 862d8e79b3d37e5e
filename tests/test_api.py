"""The Python API on toy models of both routes."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chiasm
from chiasm.core.batch import IGNORE
from chiasm.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from chiasm.core.sample import Image, Sample, Text, answer, question
from chiasm.data.formats.chat import conversation_of
from route_toys import make_parts, mllm_recipe, samples, unified_recipe

QUESTION = "what color is it?"


class Recorder(chiasm.Callback):
    def __init__(self):
        self.calls = []

    def on_step(self, step, metrics):
        self.calls.append(("step", step, metrics["loss"]))

    def on_evaluate(self, step, metrics):
        self.calls.append(("evaluate", step, dict(metrics)))

    def on_checkpoint(self, step, folder):
        self.calls.append(("checkpoint", step, (folder / "COMMIT").exists()))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = make_parts(tmp_path_factory.mktemp("api"))
    samples(1)[0].images[0].load().save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def trained(parts):
    """(run of an MLLM, what its callback saw)"""
    recorder = Recorder()
    run = chiasm.train(
        mllm_recipe(parts),
        out=parts / "mllm",
        device="cpu",
        callbacks=[recorder],
        progress=False,
        **{"stages.0.steps": 1, "stages.1.evaluate_every": 2, "stages.1.save_every": 2},
    )
    return run, recorder.calls


@pytest.fixture(scope="module")
def mllm(trained):
    return chiasm.load(trained[0], "cpu")


@pytest.fixture(scope="module")
def unified(parts):
    return chiasm.train(
        unified_recipe(parts), out=parts / "unified", device="cpu", progress=False
    ).load("cpu")


def messages(parts, reply="red"):
    picture = {"type": "image_url", "image_url": {"url": str(parts / "photo.png")}}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}
    return [asked, {"role": "assistant", "content": reply}] if reply else [asked]


# Importing


def test_import_imports_nothing_heavy():
    code = "import chiasm, sys; dir(chiasm); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "chiasm" in loaded
    assert not {name for name in loaded if name.startswith("chiasm.")}
    assert not loaded & {"torch", "transformers", "numpy", "PIL", "tokenizers", "rich", "tyro"}


def test_every_name_is_there_and_in_the_stub():
    stub = (Path(chiasm.__file__).parent / "__init__.pyi").read_text()
    names = json.loads(stub.partition("__all__ = ")[2])
    assert set(names) == {*chiasm._API, *chiasm._PACKAGES}
    assert set(names) <= set(dir(chiasm))
    for name in names:
        assert callable(getattr(chiasm, name)) or name == "data"
    with pytest.raises(AttributeError, match="lode"):
        _ = chiasm.lode


def test_the_training_package_is_still_one():
    import chiasm.train.stage

    assert chiasm.train.stage.Stage("a", 1).name == "a"
    assert callable(chiasm.train)


# Asking


def encodings(path):
    data = path.read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return [str(path), path, data, PIL.Image.open(path), url, Image(path)]


def test_an_image_is_the_same_in_every_spelling(parts, mllm):
    whole = Sample((question(Image(parts / "photo.png"), QUESTION),))
    chosen = chiasm.core.protocols.Sampling(max_tokens=4)
    wanted = "".join(piece.text for _, piece in mllm.generator([whole], chosen))
    for image in encodings(parts / "photo.png"):
        assert mllm.ask(image, QUESTION, max_tokens=4) == wanted
    prompts = [
        mllm.processor.prompts(
            [conversation_of([{"role": "user", "content": [{"type": "image", "image": image}]}])]
        )[0][0]
        for image in encodings(parts / "photo.png")
    ]
    for prompt in prompts[1:]:
        assert np.array_equal(prompt.patches, prompts[0].patches)


def test_several_images_and_none(parts, mllm, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(mllm), "generator", property(lambda _: lambda asked, _how: seen.append(asked[0]) or [])
    )
    mllm.ask([parts / "photo.png", parts / "photo.png"], "same?")
    mllm.ask(None, "two and two?")
    assert [len(sample.images) for sample in seen] == [2, 0]
    assert seen[1].turns == (question("two and two?"),)


@pytest.mark.parametrize("image", ["What shape is present?", "no/such.png", "x" * 5000, "\0"])
def test_a_string_in_the_images_place_is_never_words(mllm, image):
    with pytest.raises(DataError, match="there is no file"):
        mllm.ask(image, QUESTION)


def test_what_is_no_image_is_named(mllm):
    with pytest.raises(DataError, match="ndarray; give a path"):
        mllm.ask(np.zeros((2, 2, 3)), QUESTION)
    with pytest.raises(DataError, match=r"https://a\.b/c\.png; fetch the file"):
        mllm.ask("https://a.b/c.png", QUESTION)
    with pytest.raises(ConfigError, match="did you mean 'max_tokens'"):
        mllm.ask(None, QUESTION, max_token=3)


def test_question_takes_images_and_refuses_the_rest(parts):
    picture = PIL.Image.open(parts / "photo.png")
    turn = question(parts / "photo.png", picture, picture.tobytes(), "photo.png")
    assert [type(part) for part in turn.parts] == [Image, Image, Image, Text]
    assert turn.parts[3].text == "photo.png"
    with pytest.raises(TypeError, match="ndarray"):
        answer(np.zeros(3))


def test_stream_is_the_reply_in_pieces(parts, mllm):
    pieces = list(mllm.stream(messages(parts, reply=""), max_tokens=4))
    assert len(pieces) > 1
    assert "".join(pieces) == mllm.ask(parts / "photo.png", QUESTION, max_tokens=4)
    with pytest.raises(DataError, match="last message must be the user's"):
        list(mllm.stream(messages(parts)))


# Messages


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_text_of_messages_is_text(asked, reply):
    """Also where it spells a placeholder."""
    asked, reply = f"<image>{asked}", f"{reply}<video>"
    made = conversation_of(
        [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    )
    try:
        for text in (asked, reply):
            text.encode()
    except UnicodeEncodeError:
        return
    assert made.turns == (question(asked), answer(reply))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("what?", "list of objects with role and content"),
        ([{"role": "user", "content": "a", "mood": "calm"}], "mood"),
        ([{"role": "usr", "content": "a"}], 'unknown role "usr"'),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "int; give a path"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "tone": 1}]}], "tone"),
        ([{"role": "user"}], "content"),
        (["hi"], "role and content"),
    ],
)
def test_bad_messages_are_refused(given, named):
    with pytest.raises(DataError, match=named):
        conversation_of(given)


def test_images_outside_the_working_folder_are_read(parts, tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    PIL.Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    monkeypatch.chdir(inner)
    made = conversation_of([{"role": "user", "content": [{"type": "image", "image": "../a.png"}]}])
    assert made.images[0].load().size == (4, 4)


# Batches


def test_a_batch_is_what_training_encodes(parts, mllm):
    sample = conversation_of(messages(parts))
    encoded = mllm.processor.encode(sample)
    batch = mllm.processor([messages(parts), sample])
    assert batch.ids.shape == (1, 2 * len(encoded))
    assert batch.ids[0].tolist() == 2 * encoded.ids.tolist()
    assert batch.segment[0].tolist() == [0] * len(encoded) + [1] * len(encoded)
    rows = mllm.processor([messages(parts), messages(parts, "green blue")], packed=False)
    assert len(rows.ids) == 2
    assert rows.ids[0, : len(encoded)].tolist() == encoded.ids.tolist()
    with pytest.raises(DataError, match="at least one"):
        mllm.processor([])


@pytest.mark.parametrize("route", ["mllm", "unified"])
def test_loss_and_logits_of_one_forward_pass(route, parts, request):
    vlm = request.getfixturevalue(route)
    batch = vlm.processor([messages(parts), messages(parts, "blue")]).to(vlm.device)
    calls = []
    hook = vlm.model.register_forward_hook(lambda *_: calls.append(1))
    out = vlm(batch)
    hook.remove()
    assert len(calls) == 1
    wanted = batch.targets != IGNORE
    nll = torch.nn.functional.cross_entropy(out.logits[wanted], batch.targets[wanted])
    torch.testing.assert_close(out.loss_parts["text"], nll.detach())
    extra = 0.0
    if route == "unified":
        extra = vlm.model.config.z_loss * out.loss_parts["log_z_squared"]
    torch.testing.assert_close(out.loss, nll + extra)
    vlm.model.zero_grad()
    out.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in vlm.model.parameters())
    vlm.model.zero_grad()


def test_a_prompt_has_logits_and_no_loss(parts, mllm):
    batch = mllm.processor([messages(parts, reply="")])
    out = mllm(batch)
    assert out.loss is None
    assert out.loss_parts == {}
    first = int(out.logits[0, -1].argmax())
    said = "".join(mllm.stream(messages(parts, reply=""), max_tokens=1))
    assert said == mllm.processor.template.decode([first])


# Saving


def test_saved_and_loaded_again(parts, trained, mllm, unified, tmp_path):
    for vlm in (mllm, unified):
        folder = vlm.save(tmp_path / "model", license="mit")
        again = chiasm.load(folder, "cpu")
        batch = vlm.processor([messages(parts)])
        assert torch.equal(again.processor([messages(parts)]).ids, batch.ids)
        assert torch.equal(again(batch).logits, vlm(batch).logits)
        card = (folder / "README.md").read_text()
        assert "license: mit" in card
        assert "chiasm.load(" in card
        assert again.recipe == vlm.recipe
    assert not list(tmp_path.glob(".model*"))


def test_a_run_is_never_replaced(trained, mllm, tmp_path):
    with pytest.raises(CheckpointError, match="holds a training run"):
        mllm.save(trained[0].folder)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        mllm.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_metrics_of_the_card_are_of_these_weights(parts, trained, tmp_path):
    vlm = chiasm.load(trained[0], "cpu")
    found = chiasm.evaluate(vlm, str(parts / "data"), limit=4, max_tokens=3, progress=False)
    row = f"| data | accuracy | {found.accuracy:.1%} |"
    assert row in (vlm.save(tmp_path / "a") / "README.md").read_text()
    with torch.no_grad():
        vlm.model.projector.layers[0].weight.mul_(1.5)
    card = (vlm.save(tmp_path / "b") / "README.md").read_text()
    assert row not in card
    assert "have not been evaluated" in card
