"""Training on an accelerator: everything is where it has to be, the numbers are the CPU's, and a
step waits for the device once.

Norms and attention have kernels of their own on a CPU, which add in another order: numbers of the
two devices are compared up to rounding, those of one device bit for bit.
"""

import json

import pytest
import torch
import torch.distributed as dist
from test_ranks import assert_same_training
from test_ranks import run as run_ranks
from test_resume import BUILDERS

from chiasm.core.batch import ImageBatch
from chiasm.core.progress import silent
from chiasm.train.checkpoint import newest, read_json
from chiasm.train.evaluation import EvalResult
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import (
    AutoencoderConfig,
    FSQConfig,
    LFQConfig,
    ResidualVQConfig,
    VQConfig,
)
from pretend_device import installed, syncs

CPU = torch.device("cpu")


def trained(kind, folder, device, tmp_path, resume=False, until=None, **settings):
    """The model of a kind (test_resume.py) after its stages, 4 steps each, and its log."""
    model, rates, stream_of = BUILDERS[kind](tmp_path / "language")
    common = {"batch_tokens": 60, "log_every": 1, "autocast": "none", "save_every": 2}
    settings = {**common, "feature_cache": 0.0, **settings}
    stages = [Stage(name, 4, lr=lr, **settings) for name, lr in rates.items()][:until]
    train(
        model,
        stages,
        stream_of,
        folder,
        show=silent,
        resume=resume,
        device=device,
        keep=9,
        evaluate=lambda _: EvalResult.of({"loss": weight_sum(model)}),
    )
    return model


def weight_sum(model):
    with torch.no_grad():
        return float(sum(p.double().sum() for p in (q.cpu() for q in model.parameters())))


def log(folder):
    kept = ("loss", "grad_norm", "step", "eval/loss", "tokens", "flops")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k in kept} for line in lines]


def assert_equal_models(one, two):
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value.cpu(), second[name].cpu()), name


def assert_same_log(one, two, tolerance=1e-3):
    """The norm of a gradient is less sure than the loss: as of a codebook, whose choices turn by
    rounding, it may be a few percent apart."""
    first, second = log(one), log(two)
    assert [line.keys() for line in first] == [line.keys() for line in second]
    for a, b in zip(first, second, strict=True):
        norms = [line.pop("grad_norm", 0.0) for line in (a, b)]
        assert norms[0] == pytest.approx(norms[1], rel=0.1)
        assert a == pytest.approx(b, rel=tolerance, abs=1e-5)


SETTINGS = {
    "plain": {},
    "bfloat16, accumulated": {"autocast": "bfloat16", "gradient_accumulation_steps": 2},
    "muon, average, evaluated": {"optimizer": "muon", "ema": 0.9, "evaluate_every": 2},
    "stable, monitored, recomputed": {
        "optimizer": "stable_adamw",
        "monitor_every": 2,
        "gradient_checkpointing": True,
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_training_is_the_cpus(kind, settings, tmp_path, pretend):
    on_cpu = trained(kind, tmp_path / "cpu", CPU, tmp_path, **settings)
    held = trained(kind, tmp_path / "device", pretend, tmp_path, **settings)
    assert all(p.device == pretend for p in held.parameters())
    assert_same_log(
        tmp_path / "cpu", tmp_path / "device", 1e-2 if settings.get("autocast") else 1e-3
    )
    assert weight_sum(held) == pytest.approx(weight_sum(on_cpu), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_run_goes_on_bit_for_bit_and_on_another_device(kind, tmp_path, pretend):
    how = {"optimizer": "muon", "ema": 0.9}
    whole = trained(kind, tmp_path / "whole", pretend, tmp_path, **how)
    for number, device in enumerate((pretend, CPU)):
        parts = tmp_path / f"parts {number}"
        trained(kind, parts, pretend, tmp_path, until=1, **how)  # as if it had died there
        place = newest(parts / "checkpoints")
        assert place is not None
        assert read_json(place / "state.json")["step"] == 4
        again = trained(kind, parts, device, tmp_path, resume=True, **how)
        if device == pretend:
            assert_equal_models(whole, again)
        assert_same_log(tmp_path / "whole", parts)


@pytest.mark.parametrize(
    "quantizer",
    [
        FSQConfig((4, 3)),
        LFQConfig(4),
        VQConfig(codes=8, width=4, patience=1),
        ResidualVQConfig(codes=8, width=4, patience=1, depth=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_quantizer_learns_as_on_the_cpu(quantizer, pretend):
    made = []
    for device in (CPU, pretend):
        torch.manual_seed(0)
        model = Autoencoder(AutoencoderConfig(quantizer, 16, decoder_channels=64, decoder_blocks=1))
        model.train().to(device)
        patches = torch.rand(8, 192, generator=torch.Generator().manual_seed(1)) * 2 - 1
        batch = ImageBatch(patches, torch.full((2, 2), 2)).to(device)
        for seed in range(2):
            torch.manual_seed(seed)
            loss = model.loss(batch)
            loss.sum.backward()
        made.append((model, {name: p.grad.cpu() for name, p in model.named_parameters()}))
    assert_close(made[0][0].state_dict(), made[1][0].state_dict())
    assert_close(made[0][1], made[1][1])


def assert_close(one, two):
    for name, value in one.items():
        torch.testing.assert_close(value.cpu(), two[name].cpu(), atol=1e-4, rtol=1e-3, msg=name)


def one_of_two(rank, name, folder):
    """A process of its own: one that was forked cannot use the device's autograd threads."""
    with installed() as device:
        torch.set_num_threads(1)
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        run_ranks(name, folder / "two", device=device)
        dist.barrier()
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["mllm", "unified"])
def test_two_ranks_on_the_device_are_one(name, tmp_path, pretend):
    run_ranks(name, tmp_path / "one", device=pretend)
    torch.multiprocessing.spawn(one_of_two, (name, tmp_path), nprocs=2)
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_steady_step_waits_once(kind, tmp_path, pretend, monkeypatch):
    """For the loss, its parts and the gradient's norm, all together."""
    from chiasm.train import loop

    waited = []
    inner = loop._Trainer._step

    def counted(trainer, number, step, *rest):
        with syncs() as own:
            done = inner(trainer, number, step, *rest)
        waited.append((step, list(own)))
        return done

    monkeypatch.setattr(loop._Trainer, "_step", counted)
    trained(kind, tmp_path / "run", pretend, tmp_path, save_every=0)
    steady = [own for step, own in waited if step >= 2]
    assert steady
    assert all(len(own) <= 1 for own in steady), steady
