"""StableAdamW against its algorithm in NumPy, averages of weights, settings of single groups."""

import json

import numpy as np
import pytest
import torch
from train_toys import ToyStream, toy

from chiasm.core.errors import ConfigError
from chiasm.core.progress import silent
from chiasm.train.ema import EMA
from chiasm.train.evaluation import EvalResult
from chiasm.train.loop import train
from chiasm.train.optim import make_optimizer, set_trained
from chiasm.train.stable_adamw import StableAdamW
from chiasm.train.stage import GroupSettings, Stage

RATES = {"head": 1e-2, "body": 1e-2}


def test_stable_adamw_is_algorithm_2():
    random = np.random.default_rng(0)
    w = random.standard_normal((3, 4))
    gradients = [random.standard_normal((3, 4)) * size for size in (1, 1, 50, 1, 1)]
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    lr, (b1, b2), eps, decay = 1e-2, (0.9, 0.99), 1e-6, 0.1
    optimizer = StableAdamW([parameter], lr, (b1, b2), eps, decay)
    v = u = np.zeros_like(w)
    clipped = 0
    for t, g in enumerate(gradients, 1):
        h1, h2 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        v = h1 * v + (1 - h1) * g
        u = h2 * u + (1 - h2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(u, eps**2)))
        clipped += rms > 1.01
        rate = lr / max(1, rms)
        w = w - rate * decay * w - rate * v / (np.sqrt(u) + eps)
        parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-6)
    assert clipped, "no gradient outgrew its past: nothing was tested"


def test_stable_adamw_without_clipping_is_torchs_adamw():
    torch.manual_seed(0)
    one, two = (torch.nn.Parameter(torch.ones(6)) for _ in range(2))
    ours = StableAdamW([one], 1e-2, (0.9, 0.95), weight_decay=0.1)
    theirs = torch.optim.AdamW([two], 1e-2, (0.9, 0.95), weight_decay=0.1)
    for _ in range(5):  # gradients of one size: mean(g²/v) stays 1
        one.grad = torch.sign(torch.randn(6))
        two.grad = one.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_groups_take_their_own_settings():
    model = toy()
    stage = Stage(
        "s",
        1,
        lr={"body": 1e-2, "head": 1e-3},
        weight_decay=0.1,
        groups={
            "body": GroupSettings(optimizer="muon", weight_decay=0.0),
            "head": GroupSettings(betas=(0.5, 0.6), eps=1e-3),
        },
    )
    set_trained(model, stage)
    made = make_optimizer(model, stage)
    groups = {(g["name"], tuple(p.shape)): g for g in made.groups for p in g["params"]}
    assert groups["body", (8, 4)]["peak"] == pytest.approx(1e-2 * stage.muon_scale)
    assert groups["body", (8, 4)]["weight_decay"] == 0.0
    assert groups["head", (1, 8)]["weight_decay"] == 0.1
    assert groups["head", (1,)]["weight_decay"] == 0.0
    assert groups["head", (1, 8)]["betas"] == (0.5, 0.6)
    assert groups["head", (1, 8)]["eps"] == 1e-3


def test_settings_of_a_group_that_is_not_trained_are_refused():
    stage = Stage("s", 1, lr={"head": 1.0}, groups={"haed": GroupSettings()})
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        make_optimizer(toy(), stage)


def test_the_average_is_that_of_the_formula():
    weight = torch.nn.Parameter(torch.zeros(2))
    ema, expected = EMA([weight], 0.9), np.zeros(2)
    for n in range(40):
        with torch.no_grad():
            weight.fill_(n)
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    np.testing.assert_allclose(ema.average[0], expected, rtol=1e-5)
    with ema.applied():
        np.testing.assert_allclose(weight.detach(), expected, rtol=1e-5)
    assert weight.tolist() == [39, 39]


def test_a_stage_evaluates_and_keeps_its_averages_and_resumes_them(tmp_path):
    stages = [
        Stage("a", 6, lr=RATES, ema=0.9, save_every=2, evaluate_every=3),
        Stage("b", 2, lr=RATES, optimizer="stable_adamw", save_every=1),
    ]

    def run(folder, resume=False, stages=stages):
        model = toy()
        seen = []

        def evaluate(_):
            seen.append(model.head.weight.detach().clone())
            return EvalResult.of({"x": 1.0})

        train(
            model,
            stages,
            lambda _: ToyStream(),
            folder,
            show=silent,
            evaluate=evaluate,
            resume=resume,
            keep=9,
        )
        return model, seen

    averaged, seen = run(tmp_path / "a", stages=stages[:1])
    plain, _ = run(tmp_path / "plain", stages=[Stage("a", 6, lr=RATES)])
    assert not torch.equal(averaged.head.weight, plain.head.weight)
    assert torch.equal(seen[-1], averaged.head.weight)
    whole, _ = run(tmp_path / "b")
    for step in (4, 6, 7):  # mid-stage, between the stages, in the next one
        folder = tmp_path / f"cut{step}"
        run(folder)
        keep_until(folder, step)
        again, _ = run(folder, resume=True)
        for one, two in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, two)


def keep_until(folder, step):
    import shutil

    for place in (folder / "checkpoints").iterdir():
        if int(place.name[5:]) > step:
            shutil.rmtree(place)


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path):
    for best, kept in (("x", 2), ("-x", 6)):
        values = iter([1.0, 5.0, 4.0, 2.0, 3.0, 0.5, 2.0, 2.0, 2.0, 2.0])
        folder = tmp_path / best
        stage = Stage("s", 10, lr=RATES, evaluate_every=1, save_every=1, best_metric=best)
        train(
            toy(),
            [stage],
            lambda _: ToyStream(),
            folder,
            show=silent,
            evaluate=lambda _, values=values: EvalResult.of({"x": next(values)}),
        )
        names = {int(p.name[5:]) for p in (folder / "checkpoints").iterdir()}
        assert names == {kept, 9, 10}
        state = json.loads((folder / f"checkpoints/step-{kept}/state.json").read_text())
        assert state["score"] == (5.0 if best == "x" else -0.5)


def test_a_best_that_is_not_evaluated_is_refused(tmp_path):
    stage = Stage("s", 2, lr=RATES, evaluate_every=1, best_metric="acuracy")
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        train(
            toy(),
            [stage],
            lambda _: ToyStream(),
            tmp_path,
            show=silent,
            evaluate=lambda _: EvalResult.of({"accuracy": 1.0}),
        )
