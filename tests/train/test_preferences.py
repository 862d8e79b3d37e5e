"""Learning from preference pairs: the losses are the papers', packed pairs are pairs alone, the
reference is the model that the stage began with, and runs are exact."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from preference_toys import TOYS, labelled, mllm_toy, pairs, stream, unified_toy
from test_ranks import together
from test_resume import KilledError, dying

from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.core.sample import assistant
from chiasm.data.quarantine import Quarantine
from chiasm.data.replies import CHOSEN, REJECTED, UNRELATED, encode_pair, pack_replies
from chiasm.train.checkpoint import newest, read_json
from chiasm.train.loop import train
from chiasm.train.preference_settings import PreferenceSettings
from chiasm.train.preferences import (
    PreferenceLoss,
    label_loss,
    log1mexp,
    pair_loss,
    target_log_probs,
)
from chiasm.train.reference import BaseModel, StoredReference
from chiasm.train.stage import Stage
from pretend_device import installed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def expit(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


REFERENCES = {
    "sigmoid": lambda c, r, s: (
        -(1 - s.label_smoothing) * log_sigmoid(s.beta * (c - r))
        - s.label_smoothing * log_sigmoid(-s.beta * (c - r))
    ),
    "ipo": lambda c, r, s: (c - r - 0.5 / s.beta) ** 2,
    "hinge": lambda c, r, s: np.maximum(0, 1 - s.beta * (c - r)),
    "simpo": lambda c, r, s: -log_sigmoid(s.beta * (c - r) - s.margin),
    "orpo": lambda c, r, s: (
        -s.beta * log_sigmoid(np.log(np.exp(c) / -np.expm1(c)) - np.log(np.exp(r) / -np.expm1(r)))
    ),
}


@pytest.mark.parametrize("loss", REFERENCES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_of_pairs_are_those_of_the_papers(loss, smoothing):
    if smoothing and loss not in ("sigmoid",):
        pytest.skip("has no smoothed form of its paper's")
    random = np.random.default_rng(0)
    chosen, rejected = -random.gamma(2.0, 2.0, (2, 64))
    settings = PreferenceSettings(loss, beta=0.3, label_smoothing=smoothing)
    found = pair_loss(settings, torch.from_numpy(chosen), torch.from_numpy(rejected))
    wanted = REFERENCES[loss](chosen, rejected, settings)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_the_loss_of_labelled_replies_is_the_papers():
    random = np.random.default_rng(0)
    ratio, unrelated = random.normal(0, 3, 32), random.normal(1, 3, 16)
    good = random.random(32) < 0.5
    settings = PreferenceSettings("kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    for shift in (0.0, -9.0):  # a negative mean is no divergence
        found, z = label_loss(settings, *map(torch.from_numpy, (ratio, good, unrelated + shift)))
        wanted_z = max(0.0, (unrelated + shift).mean())
        wanted = np.where(
            good,
            1.5 * (1 - expit(0.2 * (ratio - wanted_z))),
            0.5 * (1 - expit(0.2 * (wanted_z - ratio))),
        )
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)
        assert z.item() == pytest.approx(wanted_z)


def test_log_of_what_is_left_is_exact_at_both_ends():
    x = torch.tensor([-1e-6, -0.1, -0.7, -5.0, -80.0], dtype=torch.float64, requires_grad=True)
    np.testing.assert_allclose(
        log1mexp(x).detach().numpy(), np.log(-np.expm1(x.detach().numpy())), rtol=1e-12, atol=1e-30
    )
    log1mexp(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(log1mexp(torch.zeros(1)))


@pytest.mark.parametrize("name", TOYS)
def test_packed_pairs_equal_pairs_alone(name, tmp_path):
    """Loss and gradients, against every reply as a conversation of its own in a row of its own."""
    make, rates, data = TOYS[name]
    model, processor = make(tmp_path / "language")
    model.eval()
    settings = PreferenceSettings("sigmoid", beta=0.5, sft_weight=0.3)
    start = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for group in rates:
            for p in model.groups()[group].parameters():
                p.add_(0.05 * torch.randn_like(p))
    samples = data()
    batch = pack_replies([encode_pair(processor, s) for s in samples], 10_000)
    assert batch.input_ids.shape[0] == 1
    reference = StoredReference("x", target_log_probs)
    assert reference.add(start, batch)
    loss = PreferenceLoss(settings, reference)(model, batch)
    model.zero_grad()
    loss.sum.backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def alone(m, sample, reply):
        prompt = [turn.replace(supervised=False) for turn in sample.turns[:-1]]
        row = processor.encode(sample.replace(turns=(*prompt, reply), rejected=()))
        own = pack([[row]])
        hidden = m(own).flatten(0, 1)[own.supervised]
        wanted = own.labels.flatten()[own.supervised]
        return m.logits(hidden).log_softmax(-1).gather(1, wanted[:, None])

    total = torch.zeros(())
    for sample in samples:
        sides = sample.turns[-1], sample.rejected[0]
        own = [alone(model, sample, reply) for reply in sides]
        with torch.no_grad():
            before = [alone(start, sample, reply).sum() for reply in sides]
        ahead = own[0].sum() - before[0] - own[1].sum() + before[1]
        total = total - torch.nn.functional.logsigmoid(0.5 * ahead) - 0.3 * own[0].mean()
    torch.testing.assert_close(loss.sum, total, atol=1e-5, rtol=1e-5)
    assert loss.count == len(samples)
    model.zero_grad()
    total.backward()
    for parameter, gradient in packed.items():
        other = model.get_parameter(parameter).grad
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-5, msg=parameter)


def test_the_trunk_is_the_whole_prompt_and_is_computed_once(tmp_path):
    _, processor = mllm_toy(tmp_path / "language")
    sample = pairs(3)[2]
    found = encode_pair(processor, sample)
    prompt = processor.prompts([sample.replace(turns=sample.turns[:-1])])[0][0]
    branch = found.encoded.branch_ids
    assert (branch == 0).sum() == len(prompt) - 1  # its last token predicts both replies
    assert found.kinds == (CHOSEN, REJECTED)
    assert len(found.encoded.image_grids) == 2
    learnt = processor.template.decode(found.encoded.labels[found.encoded.labels >= 0])
    assert "it is red" in learnt
    assert "a circle" in learnt


def test_logged_by_modality_margin_and_accuracy():
    model, processor = unified_toy()
    batch = pack_replies(
        [encode_pair(processor, s) for s in pairs(drawn=True)],
        10_000,
        processor.codec.vocabulary.first_code,
    )
    loss = PreferenceLoss(PreferenceSettings("simpo", margin=0.0), None)(model, batch)
    parts = loss.numbers()
    log_probs = target_log_probs(model, batch)
    targets = batch.labels.flatten()[batch.supervised]
    coded = model.vocabulary.is_code(targets)
    assert coded.any()
    assert not coded.all()
    for kind, name in ((CHOSEN, "chosen"), (REJECTED, "rejected")):
        for mine, modality in ((coded, "image"), (~coded, "text")):
            wanted = log_probs[mine & (batch.kind[batch.reply] == kind)]
            total, count = parts[f"log_prob/{name}_{modality}"]
            assert count == len(wanted)
            assert total == pytest.approx(wanted.sum().item(), rel=1e-5)
    mean = batch.per_reply(log_probs) / batch.length
    ahead = mean[batch.kind == CHOSEN] - mean[batch.kind == REJECTED]
    assert parts["accuracy"] == (float((ahead > 0).sum()), len(ahead))
    assert parts["margin"][0] == pytest.approx(0.1 * ahead.sum().item(), rel=1e-4)


def stage(rates, steps=4, settings=None, **rest):
    fields = {"batch_tokens": 150, "log_every": 1, "autocast": "none", "save_every": 1, **rest}
    settings = settings or PreferenceSettings()
    return Stage("prefer", steps, rates, feature_cache=0.0, preference=settings, **fields)


def trained(name, folder, language, after=None, steps=4, settings=None, device=None, **rest):
    make, rates, data = TOYS[name]
    model, processor = make(language)
    kto = settings is not None and settings.loss == "kto"
    source = lambda _: stream(processor, labelled() if kto else data(), labelled=kto)  # noqa: E731
    train(
        model,
        [stage(rates, steps, settings, **rest)],
        source if after is None else dying(source, after),
        folder,
        show=silent,
        resume=True,
        device=device,
        keep=9,
    )
    return model


def log(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("name", TOYS)
def test_training_starts_at_the_reference_and_learns_the_pairs(name, tmp_path):
    trained(name, tmp_path / "run", tmp_path / "language", steps=12)
    lines = log(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[0]["log_ratio/chosen"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["margin"] > 0.05
    assert lines[-1]["accuracy"] > 0.8
    stored = list((tmp_path / "cache").glob("reference/*/*"))
    assert bool(stored) == (name != "lora")  # LoRA's base model needs none


def test_the_reference_is_computed_once_and_read_again(tmp_path, monkeypatch):
    calls = []
    add = StoredReference.add
    monkeypatch.setattr(
        StoredReference, "add", lambda self, *a: calls.append(add(self, *a)) or calls[-1]
    )
    trained("mllm", tmp_path / "one", tmp_path / "language")
    assert any(calls)
    calls.clear()
    trained("mllm", tmp_path / "two", tmp_path / "language")
    assert calls
    assert not any(calls)
    first, second = ([x["loss"] for x in log(tmp_path / name)] for name in ("one", "two"))
    assert first == second
    # A record that is cut short or harmed is computed again.
    (file,) = (tmp_path / "cache").glob("reference/*/*")
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content[:-3])
    trained("mllm", tmp_path / "three", tmp_path / "language")
    assert sum(calls) in (1, 2)
    assert [x["loss"] for x in log(tmp_path / "three")] == [
        x["loss"] for x in log(tmp_path / "one")
    ]


def test_without_its_adapters_a_model_is_the_base_model(tmp_path):
    plain, _ = mllm_toy(tmp_path / "language")
    model, processor = mllm_toy(tmp_path / "language", lora=True)
    assert model.adapters_untouched()
    plain.projector.load_state_dict(model.projector.state_dict())
    plain.vision.load_state_dict(model.vision.state_dict())
    with torch.no_grad():
        for p in model.groups()["lora"].parameters():
            p.add_(torch.randn_like(p))
    assert not model.adapters_untouched()
    batch = pack_replies([encode_pair(processor, s) for s in pairs()], 10_000)
    trained_before = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        own, base = (target_log_probs(m.eval(), batch) for m in (model, plain))
        found = BaseModel(target_log_probs).tokens(model, batch)
        assert torch.equal(found, base)
        assert not torch.allclose(own, base, atol=1e-2)
        assert torch.equal(target_log_probs(model, batch), own)
    assert [p.requires_grad for p in model.parameters()] == trained_before


def test_stored_and_base_model_references_train_alike(tmp_path):
    for name in ("start", "adapters"):
        settings = PreferenceSettings(reference=name)
        trained("lora", tmp_path / name, tmp_path / "language", settings=settings)
    one, two = (log(tmp_path / name) for name in ("start", "adapters"))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(("name", "loss"), [("mllm", "sigmoid"), ("lora", "ipo"), ("mllm", "kto")])
def test_killed_again_and_again_it_equals_one_go(name, loss, tmp_path):
    def run(folder, after=None):
        return trained(
            name, folder, tmp_path / "language", after, settings=PreferenceSettings(loss),
            gradient_accumulation_steps=2, ema=0.9,
        ).state_dict()  # fmt: skip

    whole = run(tmp_path / "whole")
    seen = 0 if name == "lora" else 8  # the pass that computes the reference comes first
    for after in (seen + 3, 3):
        with pytest.raises(KilledError):
            run(tmp_path / "cut", after)
    again = run(tmp_path / "cut")
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key


def test_a_resumed_run_whose_reference_is_gone_says_so(tmp_path):
    with pytest.raises(KilledError):
        trained("mllm", tmp_path / "run", tmp_path / "language", after=6)
    for file in (tmp_path / "cache").glob("reference/*/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="begin the run again"):
        trained("mllm", tmp_path / "run", tmp_path / "language")


@pytest.mark.parametrize("name", ["mllm", "unified"])
def test_two_ranks_equal_one(name, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "steps": 3}
    trained(name, tmp_path / "one", tmp_path / "language", **settings)
    (tmp_path / "cache").rename(tmp_path / "old")
    together(lambda _: trained(name, tmp_path / "two", tmp_path / "language", **settings), tmp_path)
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        for key in ("loss", "grad_norm", "margin", "accuracy", "tokens"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", ["mllm", "lora", "unified"])
def test_on_an_accelerator_the_numbers_are_the_cpus(name, tmp_path):
    trained(name, tmp_path / "cpu", tmp_path / "language")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with installed() as device:
        trained(name, tmp_path / "device", tmp_path / "language", device=device)
    for a, b in zip(log(tmp_path / "cpu"), log(tmp_path / "device"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["margin"] == pytest.approx(b["margin"], rel=0.05, abs=1e-3)


def test_labelled_replies_come_with_an_unrelated_one(tmp_path):
    _, processor = mllm_toy(tmp_path / "language")
    made = stream(processor, labelled(), 400, labelled=True)
    batch = next(iter(made))
    kinds = batch.kind.view(-1, 2)
    assert (kinds[:, 1] == UNRELATED).all()
    assert {CHOSEN, REJECTED} == set(kinds[:, 0].tolist())
    targets = batch.labels.flatten()[batch.supervised]
    own = processor.template.decode(targets[batch.reply == 0].tolist())
    other = processor.template.decode(targets[batch.reply == 1].tolist())
    assert own != other


def test_bad_pairs_are_left_out_and_counted(tmp_path):
    _, processor = mllm_toy(tmp_path / "language")
    good = pairs(6)
    bad = [
        good[0].replace(id="same", rejected=(good[0].turns[-1],)),
        good[0].replace(id="none", rejected=()),
        good[0].replace(id="open", turns=good[0].turns[:-1]),
        good[0].replace(id="drawn", rejected=(assistant(*good[1].images, *pairs(2)[1].images),)),
    ]
    quarantine = Quarantine()
    made = stream(processor, [*good, *bad], 120)
    made.quarantine = quarantine
    batches = iter(made)
    for _ in range(12):
        next(batches)
    assert set(quarantine.reasons) == {"same", "none", "open", "drawn"}
    assert "the same reply" in quarantine.reasons["same"]
    assert "cannot draw" in quarantine.reasons["drawn"]
    with pytest.raises(DataError, match="nothing says whether"):
        next(iter(stream(processor, [s.replace(rejected=()) for s in good], labelled=True)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "has no smoothed form"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceSettings(**settings)
    with pytest.raises(ConfigError, match="set it to order"):
        stage({}, packing="knapsack")


def test_a_model_that_this_cannot_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reference 'adapters'"):
        trained(
            "mllm", tmp_path / "a", tmp_path / "language",
            settings=PreferenceSettings(reference="adapters"),
        )  # fmt: skip
    model, processor = unified_toy(image_objective="masked")
    with pytest.raises(ConfigError, match="masked diffusion"):
        train(
            model, [stage({"transformer": 1e-3})], lambda _: stream(processor, pairs()),
            tmp_path / "b", show=silent,
        )  # fmt: skip


def test_the_checkpoint_says_which_reference_it_is(tmp_path):
    for name, wanted in (("lora", "adapters"), ("mllm", "-float32")):
        trained(name, tmp_path / name, tmp_path / "language")
        state = read_json(newest(tmp_path / name / "checkpoints") / "state.json")
        assert state["objective"]["reference"].endswith(wanted)
