"""The loop: exact resume, exact accumulation, freezing, and what must never reach the weights."""

import json
import time
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_toys import STAGES, ToyStream, toy

from chiasm.core import aliases
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.progress import silent
from chiasm.train import checkpoint
from chiasm.train.evaluation import EvalResult
from chiasm.train.loop import train
from chiasm.train.schedule import factor
from chiasm.train.stage import Stage


class KilledError(Exception):
    pass


def interrupted(model, folder, after, resume=False):
    """Train but die before the step after `after` batches of this process."""
    seen = 0

    class Dying(ToyStream):
        def __iter__(self):
            nonlocal seen
            for batch in super().__iter__():
                if seen == after:
                    raise KilledError
                seen += 1
                yield batch

    with pytest.raises(KilledError):
        train(model, STAGES, lambda _: Dying(), folder, show=silent, resume=resume)


@pytest.mark.parametrize("kills", [[3], [7], [9, 1], [2, 2, 2, 2]])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, kills):
    whole = toy()
    train(whole, STAGES, lambda _: ToyStream(), tmp_path / "whole", show=silent)
    folder = tmp_path / "cut"
    for number, after in enumerate(kills):
        interrupted(toy(), folder, after, resume=number > 0)
    model = toy()
    ledger = train(model, STAGES, lambda _: ToyStream(), folder, show=silent, resume=True)
    for (name, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [entry.steps for entry in ledger.stages] == [6, 6]
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    other = [json.loads(x) for x in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 13))
    assert [x["loss"] for x in lines] == [x["loss"] for x in other]


def test_accumulation_equals_one_large_batch(tmp_path):
    """Sums divided by the global count: uneven micro-batches weigh by their size."""

    class Uneven(ToyStream):
        """Both data shards see the same places, each its own part of them."""

        def __iter__(self):
            for x, y in ToyStream(6).__iter__():
                yield (x[:1], y[:1]) if self.data_shard[0] == 0 else (x[1:], y[1:])

    def run(stream, accumulate):
        model = toy().eval()
        model.train = lambda mode=True: model  # dropout off: only the arithmetic is compared
        stage = Stage(
            "s",
            3,
            lr={"head": 1e-2, "body": 1e-2},
            gradient_accumulation_steps=accumulate,
            autocast="none",
        )
        train(model, [stage], lambda _: stream(6), tmp_path / str(accumulate), show=silent)
        return model

    one, two = run(ToyStream, 1), run(Uneven, 2)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_groups_without_a_rate_stay_as_they_are(tmp_path):
    model, before = toy(), toy()
    ledger = train(model, [STAGES[0]], lambda _: ToyStream(), tmp_path, show=silent)
    assert torch.equal(model.body[0].weight, before.body[0].weight)
    assert not torch.equal(model.head.weight, before.head.weight)
    assert ledger.stages[0].trained_parameters == 9
    assert ledger.stages[0].frozen_parameters == 32


def test_a_nan_never_reaches_the_weights_and_is_counted(tmp_path):
    model = toy()
    stage = Stage("s", 6, lr={"head": 1e-2, "body": 1e-2}, log_every=1)
    ledger = train(model, [stage], lambda _: ToyStream(poison=2), tmp_path, show=silent)
    assert ledger.stages[0].skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_without_targets_is_skipped(tmp_path):
    class Empty(ToyStream):
        def __iter__(self):
            while True:
                yield torch.zeros(0, 4), torch.zeros(0)

    model, before = toy(), toy()
    stage = Stage("s", 2, lr={"head": 1e-2})
    ledger = train(model, [stage], lambda _: Empty(), tmp_path, show=silent)
    assert ledger.stages[0].skipped_steps == 2
    assert torch.equal(model.head.weight, before.head.weight)


def test_unknown_group_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        train(
            toy(), [Stage("s", 1, lr={"haed": 1.0})], lambda _: ToyStream(), tmp_path, show=silent
        )


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    """Its keys in state.json and its groups of parameters by their old names."""
    monkeypatch.setitem(aliases.GROUPS, "top", "head")
    whole = toy()
    train(whole, STAGES, lambda _: ToyStream(), tmp_path / "whole", show=silent)
    interrupted(toy(), tmp_path / "cut", 7, resume=False)
    place = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    text = (place / "state.json").read_text()
    assert '"data_shards"' in text
    (place / "state.json").write_text(text.replace('"data_shards"', '"strands"'))
    tensors = load_file(place / "model.safetensors")
    assert any(name.startswith("head.") for name in tensors)
    old = {name.replace("head.", "top."): value for name, value in tensors.items()}
    save_file(old, place / "model.safetensors")
    (tmp_path / "cut" / "ledger.json").write_text("{}")
    model = toy()
    train(model, STAGES, lambda _: ToyStream(), tmp_path / "cut", show=silent, resume=True)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "cut" / "cost.json").exists()
    assert not (tmp_path / "cut" / "ledger.json").exists()


def test_a_stage_that_trains_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trains nothing"):
        train(toy(), [Stage("s", 1)], lambda _: ToyStream(), tmp_path, show=silent)


def test_unreadable_checkpoint_is_one_line(tmp_path):
    train(toy(), STAGES, lambda _: ToyStream(), tmp_path, show=silent)
    file = checkpoint.newest(tmp_path / "checkpoints") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="unreadable") as caught:
        train(toy(), STAGES, lambda _: ToyStream(), tmp_path, show=silent, resume=True)
    assert "\n" not in str(caught.value)


def test_resuming_with_other_stages_is_refused(tmp_path):
    train(toy(), STAGES, lambda _: ToyStream(), tmp_path, show=silent)
    with pytest.raises(CheckpointError, match="stages are other"):
        train(
            toy(),
            [Stage("other", 2, lr={"head": 1.0})],
            lambda _: ToyStream(),
            tmp_path,
            show=silent,
            resume=True,
        )


def test_an_uncommitted_checkpoint_is_not_seen(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / "step-2", {"model": {"a.b": torch.ones(2)}}, {"x": 1})
    checkpoint.save(folder / "step-10", {"model": {"a.b": torch.ones(2)}}, {"x": 2})
    (folder / "step-10" / "COMMIT").unlink()
    (folder / "step-11.tmp").mkdir()
    assert checkpoint.newest(folder).name == "step-2"


def test_keep_deletes_the_oldest(tmp_path):
    train(toy(), STAGES, lambda _: ToyStream(), tmp_path, show=silent, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-12"]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_then_fall_to_the_floor(schedule):
    stage = Stage("s", 100, warmup_ratio=0.1, schedule=schedule, min_lr_ratio=0.1)
    values = [factor(stage, step) for step in range(100)]
    assert 0 < values[0] < values[5] < values[10] == 1.0
    assert all(a >= b for a, b in pairwise(values[10:]))
    assert values[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1, abs=0.02)


def test_periodic_evaluation_is_logged(tmp_path):
    stage = Stage("s", 4, lr={"head": 1e-2}, evaluate_every=2)
    train(
        toy(),
        [stage],
        lambda _: ToyStream(),
        tmp_path,
        show=silent,
        evaluate=lambda _: EvalResult.of({"x": 1.0}),
    )
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "eval/x" in x] == [2, 4]


def test_the_log_says_how_well_the_machine_is_used(tmp_path):
    """A stream that sleeps is seen as a stall; rates, peak and memory are there and sensible."""

    class Slow(ToyStream):
        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.02)
                yield batch

    train(toy(), STAGES[:1], lambda _: Slow(), tmp_path, show=silent)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert 0.3 < line["data_wait"] <= 1
        assert 0 < line["mfu_measured"] < 1
        assert line["memory_gb"] > 0.01
        assert "waited" not in line
        assert line["tokens_per_second"] > 0
