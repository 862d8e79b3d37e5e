"""Monitors against plain computations, and the sweeps as a user types them."""

import json
import math

import numpy as np
import pytest
import torch

from chiasm.cli import main
from chiasm.core.batch import IGNORE
from chiasm.core.progress import silent
from chiasm.eval.report import render
from chiasm.nn.attention import TokenIndex, largest_logit, packed_layout, visible
from chiasm.recipes.recipe import find
from chiasm.recipes.stability import trial as trials
from chiasm.recipes.stability.drift import slope
from chiasm.recipes.stability.sweep import sensitivity
from chiasm.recipes.stability.toy import CODES, LENGTH, SIDE, VOCABULARY, WORDS, ToyStream
from chiasm.recipes.stability.trial import Trial, outcome_of
from chiasm.train.loop import train
from chiasm.train.monitor import Monitor
from chiasm.train.optim import make_optimizer, set_trained
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified

RATES = {"embedding": 1e-2, "transformer": 1e-2}
SMALL = UnifiedConfig(
    text_vocabulary=VOCABULARY.text,
    hidden_size=32,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate_size=48,
    qk_norm=False,
    image_weight=0.5,
)


def model():
    torch.manual_seed(0)
    return Unified(SMALL, VOCABULARY)


def batch(kind="mixed"):
    return next(iter(ToyStream(kind, 4)))


def test_largest_logit_equals_a_masked_matrix():
    torch.manual_seed(0)
    segment = torch.tensor([[0] * 5 + [1] * 3 + [-1] * 2, [0] * 9 + [-1]])
    block = torch.tensor([[0, 0, 0, 1, 2, 0, 1, 2, 0, 0], [*range(9), 0]])
    index = TokenIndex(segment, block, torch.zeros_like(segment))
    q, k = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 10, 8)
    logits = q @ k.repeat_interleave(2, 1).mT / math.sqrt(8)
    seen = visible(index, index) & (segment >= 0)[:, :, None]
    expected = logits.masked_fill(~seen[:, None], -math.inf).max()
    torch.testing.assert_close(largest_logit(q, k, packed_layout(index)), expected)
    later = torch.ones(10, 10, dtype=torch.bool).triu(1)
    whole = TokenIndex(
        torch.zeros(2, 10).long(), torch.arange(10).expand(2, 10), torch.zeros(2, 10).long()
    )
    expected = logits.masked_fill(later, -math.inf).max()
    torch.testing.assert_close(largest_logit(q, k, packed_layout(whole)), expected)


def test_monitors_equal_plain_computations():
    made, stage = model(), Stage("s", 1, RATES, autocast="none")
    set_trained(made, stage)
    optimizer, given = make_optimizer(made, stage), batch()
    monitor = Monitor(made, optimizer)
    monitor.before(given)
    assert all(p.grad is None for p in made.parameters())
    assert all(layer.self_attn.watch is None for layer in made.layers)
    outputs = []
    handle = made.layers[-1].register_forward_hook(lambda *a: outputs.append(a[2]))
    image = made.vocabulary.is_code(given.labels)
    wanted, sums = given.labels != IGNORE, {}
    for name, keep in (("text", wanted & ~image), ("image", image)):
        made.zero_grad()
        nll = torch.nn.functional.cross_entropy(
            made.logits(made(given))[keep], given.labels[keep], reduction="sum"
        )
        ((0.5 if name == "image" else 1.0) * nll / wanted.sum()).backward()
        sums[name] = torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])
    handle.remove()
    made.zero_grad()
    loss = made.loss(given)
    (loss.sum / loss.count).backward()
    before = torch.cat([p.detach().flatten() for p in made.layers.parameters()])
    before = torch.cat([before, made.norm.weight.detach()])
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in made.layers.parameters()])
    after = torch.cat([after, made.norm.weight.detach()])
    found = monitor.after()
    assert found["monitor/output_rms"] == pytest.approx(outputs[0].square().mean().sqrt().item())
    for name, own in sums.items():
        assert found[f"monitor/grad_norm/{name}"] == pytest.approx(own.norm().item(), rel=1e-4)
    cosine = torch.cosine_similarity(sums["text"], sums["image"], 0).item()
    assert found["monitor/grad_cosine"] == pytest.approx(cosine, abs=1e-4)
    ratio = ((after - before).norm() / before.norm()).item()
    assert found["monitor/update_ratio/transformer"] == pytest.approx(ratio, rel=1e-4)
    assert 0 < found["monitor/update_ratio/embedding"] < 1
    assert found["monitor/largest_logit"] > 0


def test_monitors_change_nothing_and_reach_the_log_and_the_page(tmp_path):
    weights = []
    for every in (0, 2):
        made = model()
        stage = Stage("s", 6, RATES, autocast="none", log_every=2, monitor_every=every)
        folder = tmp_path / str(every) / "unified"
        train(made, [stage], lambda _: ToyStream("mixed", 4), folder, show=silent)
        weights.append([p.detach().clone() for p in made.parameters()])
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [("monitor/largest_logit" in line) for line in lines] == [bool(every)] * 3
        (folder.parent / "summary.json").write_text("{}")
        page = render(folder.parent).read_text()
        assert ("largest attention logit" in page) is bool(every)
        assert ("gradient norm of images" in page) is bool(every)
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


def test_the_toy_world_is_what_it_says():
    stream = ToyStream("mixed", 2)
    first = next(iter(stream))
    assert first.input_ids.shape == (2, LENGTH)
    again = ToyStream("mixed", 2)
    again.load_state_dict({"cursor": 0})
    assert torch.equal(next(iter(again)).input_ids, first.input_ids)
    assert not torch.equal(next(iter(again)).input_ids, first.input_ids)
    row = first.input_ids[0].tolist()
    words = np.array(row[1 : row.index(VOCABULARY.begin_image)]) - 5
    grid = np.array([i - VOCABULARY.text for i in row if i >= VOCABULARY.text]).reshape(SIDE, SIDE)
    padded = np.pad(grid, ((1, 0), (1, 0)))
    noise = (grid - padded[:-1, 1:] - padded[1:, :-1] - words[:SIDE, None]) % CODES
    assert set(noise.flatten()) <= {0, 1, 2}
    assert (words < WORDS).all()
    images = batch("image")
    assert bool(VOCABULARY.is_code(images.labels[images.labels != IGNORE]).all())


def test_sensitivity_is_the_papers():
    """Lost runs and those worse than the start count as the start."""
    assert sensitivity([2.0, 1.0, None, 9.0], [4.0] * 4) == pytest.approx((2 + 1 + 4 + 4) / 4 - 1)
    assert sensitivity([1.0, 1.0], [4.0] * 2) == 0


def test_slope_is_numpys():
    points = [(10 * n, 0.3 * n + (n % 3)) for n in range(20)]
    x, y = np.array(points[10:]).T
    assert slope(points) == pytest.approx(1000 * np.polyfit(x, y, 1)[0])
    assert slope([(1, 1.0)]) == 0.0


def test_a_run_that_is_lost_says_so(tmp_path):
    lost = Trial("mixed", 16, 1, False, 0.0, 1e38, 0, 12, 2)
    done = outcome_of(lost, tmp_path)
    assert done.loss is None
    assert done.log_z is None
    assert math.isfinite(done.start)


def test_a_trial_that_was_stopped_begins_anew(tmp_path):
    trial = Trial("mixed", 16, 1, False, 0.0, 1e-3, 0, 12, 2)
    whole = outcome_of(trial, tmp_path)
    (tmp_path / f"{trial.name}.json").unlink()  # its log is still there, as a killed one's is
    assert outcome_of(trial, tmp_path) == whole
    assert whole.loss is not None


def test_the_sweep_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    call = ["sweep", "stability", str(tmp_path / "s"), "--widths", "16", "--layers", "1"]
    call += ["--seeds", "2", "--steps", "10", "--rows", "2", "--rates", "1e-3", "1e-1"]
    main(call)
    said = capsys.readouterr().out
    assert "d 16, plain: sensitivity by seed" in said
    report = json.loads((tmp_path / "s" / "stability.json").read_text())
    found = report["widths"]["16"]["variants"]
    for name, row in found.items():
        for seed in range(2):
            losses = row["loss"][seed]
            starts = json.loads(
                next(
                    (tmp_path / "s" / "trials").glob(f"*{_short(name)}-*seed{seed}.json")
                ).read_text()
            )["outcome"]["start"]
            assert row["sensitivity"][seed] == pytest.approx(sensitivity(losses, [starts] * 2))
            assert row["log_z_drift"][seed] is not None
    image = (tmp_path / "s" / "stability.svg").read_text()
    assert image.count("<polyline") == 3
    assert "qk-norm, d 16" in image
    removed = next((tmp_path / "s" / "trials").glob("*qk*seed1.json"))
    before = removed.read_text()
    removed.unlink()
    trained = []
    monkeypatch.setattr(trials, "train", lambda *a, **k: trained.append(a) or train(*a, **k))
    main(call)
    assert len(trained) == 1
    assert (
        json.loads(removed.read_text())["outcome"]["loss"] == json.loads(before)["outcome"]["loss"]
    )
    with pytest.raises(SystemExit):
        main([*call, "--layers", "2"])
    assert "other settings" in capsys.readouterr().err


def _short(name):
    return {"plain": "plain", "qk-norm": "qk", "z-loss": "z"}[name]


def test_drift_compares_three_mixtures(tmp_path, capsys):
    call = ["sweep", "drift", str(tmp_path / "d"), "--width", "16", "--layers", "1"]
    main([*call, "--seeds", "1", "--steps", "40", "--rows", "2"])
    report = json.loads((tmp_path / "d" / "drift.json").read_text())
    assert set(report["slope_per_1000_steps"]) == {"text", "image", "mixed"}
    for kind, (found,) in report["slope_per_1000_steps"].items():
        (file,) = (tmp_path / "d" / "trials").glob(f"{kind}-*.json")
        series = json.loads(file.read_text())["outcome"]["output_rms"]
        assert len(series) == 20
        assert found == pytest.approx(slope(series))
    assert report["verdict"] in capsys.readouterr().out
    assert (tmp_path / "d" / "drift.svg").read_text().count("<polyline") == 3


@pytest.mark.parametrize(
    ("name", "codes", "low", "high"),
    [
        ("chameleon_7b", 8192, 6.9e9, 7.1e9),
        ("emu3_8b", 32768, 8.4e9, 8.6e9),
        ("unified_base", 8000, 1.4e8, 1.6e8),
    ],
)
def test_large_recipes_have_the_published_size(name, codes, low, high):
    """Built without memory for the weights; everything is trained in some stage."""
    recipe = find(name)
    vocabulary = VOCABULARY.__class__(recipe.model.text_vocabulary, codes, 0, 1, 2, 3, 4)
    with torch.device("meta"):
        made = Unified(recipe.model, vocabulary)
        assert low < sum(p.numel() for p in made.parameters()) < high
        assert set(made.groups()) == set(recipe.stages[0].lr)
    tokens = recipe.stages[0].batch_tokens * recipe.stages[0].gradient_accumulation_steps
    assert tokens >= 2**15
