"""What is let through to the weights: finite, no spike; and the way from a skip to a stop."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_toys import Toy, ToyStream, toy

from chiasm.core.errors import DivergedError
from chiasm.core.progress import silent
from chiasm.train.divergence_report import first_grown, output_sizes
from chiasm.train.guard import Guard, upper
from chiasm.train.loop import train
from chiasm.train.stage import GuardSettings, Stage

RATES = {"head": 3e-2, "body": 3e-2}


def guard(**settings):
    made = Guard(GuardSettings(window=16, **settings))
    for n in range(16):
        assert made.judge(1.0 + 0.1 * (n % 3), 2.0 + 0.1 * (n % 4), never).action == "apply"
    return made


def never():
    raise AssertionError("asked without need")


def actions(made, steps, can_return=True):
    return [made.judge(loss, norm, lambda: can_return).action for loss, norm in steps]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_from_the_first_step_on(bad):
    made = Guard(GuardSettings())
    assert actions(made, [(bad, 1.0), (1.0, bad), (1.0, 1.0)]) == ["skip", "skip", "apply"]


def test_a_spike_needs_both_to_rise_and_falling_is_none():
    steps = [(9.0, 1.0), (1.0, 99.0), (0.0, 0.0), (9.0, 99.0)]
    assert actions(guard(), steps) == ["apply", "apply", "apply", "skip"]
    assert actions(guard(threshold=0), steps[3:]) == ["apply"]


def test_skips_then_rollbacks_then_a_stop():
    made = guard(patience=2, rollbacks=2)
    bad = [(math.nan, 1.0)] * 9
    once = ["skip", "skip", "rollback"]
    assert actions(made, bad) == [*once, *once, "skip", "skip", "stop"]
    assert actions(guard(patience=2), bad[:3], can_return=False) == ["skip", "skip", "stop"]


def test_good_steps_between_forget_the_refusals_and_later_the_rollbacks():
    made = guard(patience=1, rollbacks=1)
    for _ in range(3):
        assert actions(made, [(math.nan, 1.0), (1.0, 2.0)]) == ["skip", "apply"]
    assert actions(made, [(math.nan, 1.0)] * 2) == ["skip", "rollback"]
    assert actions(made, [(1.0, 2.0)] * 16) == ["apply"] * 16
    assert actions(made, [(math.nan, 1.0)] * 2) == ["skip", "rollback"]


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=40), st.floats(1, 10))
def test_the_limit_is_the_robust_one_and_one_wild_value_hardly_moves_it(values, threshold):
    middle = np.median(values)
    spread = max(1.4826 * np.median(np.abs(np.array(values) - middle)), 0.02 * middle)
    assert upper(values, threshold) == pytest.approx(middle + threshold * spread)
    assert upper(values, threshold) >= middle


def test_its_state_continues_it():
    one = guard(patience=2)
    actions(one, [(math.nan, 1.0)])
    two = Guard(one.settings)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    steps = [(math.nan, 1.0), (9.0, 99.0), (1.1, 2.1), (9.0, 99.0)]
    assert actions(one, steps) == actions(two, steps)


def run(folder, stream, steps=400, **settings):
    model = toy()
    stage = Stage("s", steps, lr=RATES, log_every=50, save_every=5, autocast="none", **settings)
    train(model, [stage], lambda _: stream, folder, show=silent)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return model, lines


def clean_loss(model):
    x, y = zip(*itertools.islice(ToyStream(64), 20), strict=True)
    with torch.no_grad():
        return (model.eval().head(model.body(torch.cat(x)))[:, 0] - torch.cat(y)).square().mean()


def test_a_spike_of_corrupt_batches_recovers_to_the_clean_loss(tmp_path):
    """Nine corrupt batches in a row: skipped, rolled back, and 5 % of the clean loss kept."""
    clean, _ = run(tmp_path / "clean", ToyStream(16))
    made, lines = run(
        tmp_path / "corrupt",
        ToyStream(16, corrupt=range(101, 110)),
        guard=GuardSettings(window=64, patience=3),
    )
    assert clean_loss(made) < 1.05 * clean_loss(clean)
    decisions = [line["guard"] for line in lines if "guard" in line]
    assert decisions == [*["skip"] * 3, "rollback", *["skip"] * 3, "rollback", "skip"]


class Named(tuple):
    """A toy batch that knows its samples."""

    names = ("good", "bad-7")


def test_a_stop_names_samples_and_the_layer_that_grew_first(tmp_path):
    class Broken(ToyStream):
        def __iter__(self):
            for number, (x, y) in enumerate(super().__iter__()):
                yield Named((x * (math.nan if number >= 30 else 1.0), y))

    model = toy()
    stage = Stage("s", 60, lr=RATES, guard=GuardSettings(patience=2))
    with pytest.raises(DivergedError) as caught:
        train(model, [stage], lambda _: Broken(), tmp_path, show=silent)
    said = str(caught.value)
    for words in ("stage 's', step 33", "loss is nan", "3 steps", "bad-7", "body:", "-> nan"):
        assert words in said
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "\n" not in said


def test_buffers_that_follow_the_data_are_put_back(tmp_path):
    """A codebook averaged in the forward pass would keep a NaN for ever."""

    class Following(Toy):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def loss(self, batch):
            if self.training:
                self.mean.lerp_(batch[0].mean(0), 0.1)
            return super().loss(batch)

    model = Following()
    stage = Stage("s", 6, lr=RATES)
    train(model, [stage], lambda _: ToyStream(poison=2), tmp_path, show=silent)
    assert torch.isfinite(model.mean).all()
    assert model.mean.abs().sum() > 0


def test_the_first_grown_layer_in_the_order_they_run():
    before = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert first_grown(before, {"a": 1.5, "b": 9.0, "c": math.nan}) == "b: 1 -> 9"
    assert first_grown(before, {"a": 1.5, "b": 2.0, "c": 1.0}) == "b: 1 -> 2"
    assert first_grown({}, {"a": 1.0}) == ""


def test_output_sizes_leave_the_model_as_it_was():
    model = toy().train()
    batch = next(iter(ToyStream(8)))
    sizes = output_sizes(model, batch)
    expected = model.eval().body(batch[0]).square().mean().sqrt().item()
    assert sizes == {"body": pytest.approx(expected)}
    assert not any(m._forward_hooks for m in model.modules())
