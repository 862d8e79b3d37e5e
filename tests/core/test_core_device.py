"""Which device a process computes on, where there are several: chosen on a machine without any."""

import pytest
import torch

from chiasm.core import device
from chiasm.core.errors import ConfigError
from chiasm.train.parallel import joined


@pytest.fixture
def two_gpus(monkeypatch):
    """CUDA says that it has two; the numbers of those made current."""
    current = []
    monkeypatch.setattr(device, "_count", lambda kind: 2 * (kind == "cuda"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: current.append(chosen.index))
    monkeypatch.setenv("CHIASM_DEVICE", "")
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return current


@pytest.mark.parametrize(
    ("given", "rank", "found"),
    [
        ("auto", {}, "cuda:0"),
        ("auto", {"LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda", {"SLURM_LOCALID": "1"}, "cuda:1"),
        ("cuda", {"LOCAL_RANK": "0", "SLURM_LOCALID": "1"}, "cuda:0"),  # torchrun in a Slurm task
        ("cuda:1", {"LOCAL_RANK": "0"}, "cuda:1"),
        ("cpu", {"LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_a_rank_has_its_own_device(given, rank, found, two_gpus, monkeypatch):
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    assert str(device.resolve(given)) == found


def test_the_environment_is_asked_where_nothing_is_given(two_gpus, monkeypatch):
    monkeypatch.setenv("CHIASM_DEVICE", "cuda:1")
    assert str(device.resolve()) == "cuda:1"
    assert str(device.resolve("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("given", "why"),
    [("cuda:2", "number 2"), ("mps", "Apple silicon"), ("xpu", "no such"), ("gpu", "no device")],
)
def test_what_is_not_there_is_told(given, why, two_gpus):
    with pytest.raises(ConfigError, match=why):
        device.resolve(given)


def test_a_rank_too_many_is_told(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="at most 2 ranks"):
        device.resolve("auto")


def test_the_device_of_a_command_is_cudas_current_one(two_gpus):
    """Otherwise what is told no device would use cuda:0 beside a model on cuda:1."""
    device.compute_on("cuda:1")
    assert two_gpus == [1]
    with joined(torch.device("cuda:1")):  # in a process by itself too
        assert two_gpus == [1, 1]
