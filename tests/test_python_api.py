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
from chiasm.core.config import to_dict
from chiasm.core.errors import CheckpointError, ConfigError, DataError, NotGenerativeError
from chiasm.core.sample import Image, Sample, Text, assistant, user
from chiasm.data.formats.chat import conversation_of
from chiasm.mllm.config import LinearConfig, LoRAConfig
from chiasm.mllm.projectors import Projector
from chiasm.mllm.projectors.linear import LinearProjector
from chiasm.recipes.recipe import Recipe, find
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
    image = {"type": "image_url", "image_url": {"url": str(parts / "photo.png")}}
    asked = {"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}
    return [asked, {"role": "assistant", "content": reply}] if reply else [asked]


# Importing


def test_import_imports_nothing_heavy():
    code = "import chiasm, sys; dir(chiasm); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "chiasm" in loaded
    own = {name for name in loaded if name.startswith("chiasm.")}
    assert own <= {"chiasm.core", "chiasm.core.moved"}  # old names of modules
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
    whole = Sample((user(Image(parts / "photo.png"), QUESTION),))
    chosen = chiasm.core.protocols.SamplingParams(max_tokens=4)
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
        assert np.array_equal(prompt.image_patches, prompts[0].image_patches)


def test_several_images_and_none(parts, mllm, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(mllm), "generator", property(lambda _: lambda asked, _how: seen.append(asked[0]) or [])
    )
    mllm.ask([parts / "photo.png", parts / "photo.png"], "same?")
    mllm.ask(None, "two and two?")
    assert [len(sample.images) for sample in seen] == [2, 0]
    assert seen[1].turns == (user("two and two?"),)


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
    image = PIL.Image.open(parts / "photo.png")
    turn = user(parts / "photo.png", image, image.tobytes(), "photo.png")
    assert [type(part) for part in turn.content] == [Image, Image, Image, Text]
    assert turn.content[3].text == "photo.png"
    with pytest.raises(TypeError, match="ndarray"):
        assistant(np.zeros(3))


def test_stream_is_the_reply_in_pieces(parts, mllm):
    pieces = list(mllm.stream(messages(parts, reply=""), max_tokens=4))
    assert len(pieces) > 1
    assert "".join(pieces) == mllm.ask(parts / "photo.png", QUESTION, max_tokens=4)
    with pytest.raises(DataError, match="last message must be the user's"):
        list(mllm.stream(messages(parts)))


def test_images_are_generated_by_a_unified_model_alone(parts, mllm, unified):
    with pytest.raises(NotGenerativeError, match="MLLM, which reads images"):
        mllm.generate_images("a red square")
    images = unified.generate_images("a red square", n=2, seed=3, best_of=1)
    again = unified.generate_images("a red square", n=2, seed=3, best_of=1)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]
    assert images[0].tobytes() != images[1].tobytes()
    with pytest.raises(ConfigError, match="at least 1"):
        unified.generate_images("a red square", n=0)


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
    assert made.turns == (user(asked), assistant(reply))


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
    assert batch.input_ids.shape == (1, 2 * len(encoded))
    assert batch.input_ids[0].tolist() == 2 * encoded.input_ids.tolist()
    assert batch.segment_ids[0].tolist() == [0] * len(encoded) + [1] * len(encoded)
    rows = mllm.processor([messages(parts), messages(parts, "green blue")], packed=False)
    assert len(rows.input_ids) == 2
    assert rows.input_ids[0, : len(encoded)].tolist() == encoded.input_ids.tolist()
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
    wanted = batch.labels != IGNORE
    nll = torch.nn.functional.cross_entropy(out.logits[wanted], batch.labels[wanted])
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
        assert torch.equal(again.processor([messages(parts)]).input_ids, batch.input_ids)
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


def test_a_projector_is_replaced_and_saved(parts, trained, tmp_path):
    vlm = chiasm.load(trained[0], "cpu")
    wide, narrow = 16, vlm.model.language.config.hidden_size
    before = len(vlm.processor.encode(conversation_of(messages(parts))))
    vlm.replace_projector(LinearProjector(LinearConfig(), wide, narrow, 1.0))
    batch = vlm.processor([messages(parts)])
    assert batch.input_ids.shape[1] - before == 4 - 1  # 2 x 2 patches, which were one token
    again = chiasm.load(vlm.save(tmp_path / "out"), "cpu")
    assert isinstance(again.model.projector, LinearProjector)
    assert torch.equal(again(again.processor([messages(parts)])).logits, vlm(batch).logits)


class Doubling(Projector):
    """Two tokens of every feature; `claimed` tokens are said."""

    def __init__(self, vision, language, claimed=2):
        super().__init__()
        self.linear, self.claimed = torch.nn.Linear(vision, language), claimed

    def tokens(self, grid):
        return self.claimed * grid[0] * grid[1]

    def forward(self, features, grids):
        return self.linear(features).repeat_interleave(2, 0)


def test_a_projector_of_ones_own(parts, trained, tmp_path):
    vlm = chiasm.load(trained[0], "cpu")
    width = vlm.model.language.config.hidden_size
    old = vlm.model.projector
    for wrong, named in (
        (Doubling(16, width, 3), "expected"),
        (Doubling(16, width + 1), "width of the language model"),
        (Doubling(15, width), "cannot take features"),
        (torch.nn.Linear(16, width), "is no projector"),
    ):
        with pytest.raises(ConfigError, match=named):
            vlm.replace_projector(wrong)
        assert vlm.model.projector is old
    out = vlm.replace_projector(Doubling(16, width))(vlm.processor([messages(parts)]))
    out.loss.backward()
    assert vlm.model.projector.linear.weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="cannot be saved"):
        vlm.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_saving_leaves_adapters_in_the_model(parts, tmp_path):
    pytest.importorskip("peft")
    recipe = mllm_recipe(parts)
    model = recipe.model.__class__(
        **{**vars(recipe.model), "lora": LoRAConfig(rank=2), "freeze_first_layers": 0}
    )
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_dict(Recipe(model, recipe.stages[:1], recipe.data))))
    vlm = chiasm.load(file, "cpu")
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = vlm.processor([messages(parts)])
    before = vlm(batch).logits
    again = chiasm.load(vlm.save(tmp_path / "out"), "cpu")
    assert any("lora_B" in name for name, _ in vlm.model.named_parameters())
    assert torch.equal(vlm(batch).logits, before)
    torch.testing.assert_close(again(batch).logits, before, atol=1e-4, rtol=1e-4)


# The hub


class FakeApi:
    """huggingface_hub.HfApi without a network: the uploaded files of each repository."""

    uploads: dict = {}  # noqa: RUF012

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        self.uploads[repo_id] = {"private": private, "token": self.token}

    def upload_folder(self, repo_id, folder_path, commit_message):
        files = {f.relative_to(folder_path).as_posix(): f.read_bytes()
                 for f in Path(folder_path).rglob("*") if f.is_file()}  # fmt: skip
        self.uploads[repo_id]["files"] = files
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that gives back what was pushed to it."""
    import huggingface_hub

    def download(repo, allow_patterns):
        folder = tmp_path / "cache" / repo.replace("/", "--")
        for name, content in FakeApi.uploads[repo]["files"].items():
            assert any(Path(name).match(pattern) for pattern in allow_patterns)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(FakeApi, "uploads", {})
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return FakeApi.uploads


def test_pushed_and_loaded_by_its_id(parts, mllm, hub, capsys):
    url = mllm.push_to_hub("me/model", private=True, token="t", license="apache-2.0")
    assert url == "https://hub/me/model/commit/1"
    assert (hub["me/model"]["private"], hub["me/model"]["token"]) == (True, "t")
    card = hub["me/model"]["files"]["README.md"].decode()
    assert 'chiasm.load("me/model")' in card
    assert str(parts) not in card
    again = chiasm.load("me/model", "cpu")
    batch = mllm.processor([messages(parts)])
    assert torch.equal(again(batch).logits, mllm(batch).logits)


def test_commands_take_ids_of_the_hub(parts, mllm, hub, capsys):
    from chiasm.cli import main

    mllm.push_to_hub("me/model")
    wanted = mllm.ask(parts / "photo.png", QUESTION, max_tokens=4)
    main(["chat", "me/model", str(parts / "photo.png"), QUESTION, "--max-tokens", "4"])
    assert capsys.readouterr().out == wanted + "\n"
    main(["eval", "me/model", "--task", str(parts / "data"), "--limit", "2"])
    assert Path("runs/model/predictions-data.jsonl").is_file()
    assert not Path("me").exists()
    from chiasm.recipes.serve_command import served

    assert served(Path("me/model")).processor.template is not None


def test_without_a_network_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"me/nowhere: neither a folder .*; give a folder"):
        chiasm.load("me/nowhere")  # HF_HUB_OFFLINE is set (conftest.py)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="no such folder"):
        chiasm.load("runs/mlm")


def test_a_layout_that_does_not_fit_is_refused(mllm, tmp_path):
    with pytest.raises(ConfigError, match="no published layout"):
        mllm.save(tmp_path / "out", layout="hf")
    assert not (tmp_path / "out").exists()


# Recipes


def test_a_recipe_has_fresh_weights_of_its_seed(parts, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_dict(unified_recipe(parts))))
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, second = chiasm.load(file, "cpu"), chiasm.load(str(file), "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.generate_images("red", best_of=1)[0].size == (32, 32)


def test_a_tokenizer_that_is_not_given_is_made_anew(parts, tmp_path):
    recipe = to_dict(unified_recipe(parts))
    recipe["model"]["tokenizer"] = None
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    assert chiasm.load(file, "cpu").can_generate_images


def test_a_runs_recipe_is_a_recipe(trained, tmp_path):
    file = trained[0].folder / "recipe.json"
    assert to_dict(find(str(file))) == json.loads(file.read_text())
    with pytest.raises(ConfigError, match="--out"):
        chiasm.train(file)
    with pytest.raises(ConfigError, match=r"no/recipe\.json: cannot be read"):
        find("no/recipe.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: not JSON"):
        find(str(tmp_path / "a.json"))


def test_only_models_that_talk_are_loaded(parts):
    for name in ("encoder", "tokenizer"):
        with pytest.raises(CheckpointError, match="generates no replies"):
            chiasm.load(parts / name, "cpu")


# Training and evaluating


def test_callbacks_see_steps_evaluations_and_checkpoints(trained):
    run, calls = trained
    assert [step for kind, step, _ in calls if kind == "step"] == [1, 2, 3, 4, 5]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [value for kind, _, value in calls if kind == "step"] == losses
    assert [step for kind, step, _ in calls if kind == "evaluate"] == [3, 5]
    assert all("accuracy" in value for kind, _, value in calls if kind == "evaluate")
    assert [call[1:] for call in calls if call[0] == "checkpoint"] == [(3, True), (5, True)]


def test_an_exception_of_a_callback_ends_the_run(parts, tmp_path):
    class Failing(chiasm.Callback):
        def on_step(self, step, metrics):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        chiasm.train(
            mllm_recipe(parts), out=tmp_path, device="cpu", callbacks=[Failing()], progress=False
        )
    assert not (tmp_path / "model.json").exists()


def test_overrides_are_checked_and_the_device_is_put_back(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_DEVICE", "auto")
    with pytest.raises(ConfigError, match=r"did you mean 'stages\.0\.steps'"):
        chiasm.train(mllm_recipe(parts), out=tmp_path, **{"stages.0.step": 1})
    with pytest.raises(ConfigError, match="no device"):
        chiasm.train(mllm_recipe(parts), out=tmp_path, device="abacus")
    assert chiasm.core.device.os.environ["CHIASM_DEVICE"] == "auto"


def test_a_run_and_its_model_score_alike(parts, trained, mllm):
    data = str(parts / "data")
    of_run = chiasm.evaluate(trained[0], data, max_tokens=3, device="cpu", progress=False)
    of_model = chiasm.evaluate(mllm, data, max_tokens=3, progress=False)
    assert (of_run.accuracy, of_run.interval, of_run.n) == (
        of_model.accuracy, of_model.interval, of_model.n,
    )  # fmt: skip
    again = chiasm.evaluate(trained[0], data, max_tokens=3, device="cpu", progress=False)
    assert again.resumed == again.n == 12
    with pytest.raises(ConfigError, match="perplexity is not a score"):
        chiasm.evaluate(mllm, data, metric="perplexity")


def test_a_loader_goes_on_where_it_was(parts, mllm):
    def loader():
        return chiasm.data.loader(parts / "data", mllm.processor, batch_tokens=256, seed=3)

    first = loader()
    passed = [next(first) for _ in range(3)]
    assert all(batch.input_ids.shape[1] <= 256 for batch in passed)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = loader()
    resumed.load_state_dict(state)
    for _ in range(3):
        one, other = next(first), next(resumed)
        assert torch.equal(one.input_ids, other.input_ids)
        assert one.names == other.names
    given = chiasm.data.loader(samples(4), mllm.processor)
    assert len(next(iter(given)).names) >= 1
