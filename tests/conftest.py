"""Shared by all tests: small and quick, one thread, nothing from the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def pretend():
    """An accelerator that does not exist (tests/pretend_device.py)."""
    from pretend_device import installed

    with installed() as device:
        yield device


@pytest.fixture
def fresh_choices(tmp_path, monkeypatch):
    """No choice between kernels has been made on this machine; those of a test are forgotten."""
    from chiasm.nn import autotune, norm

    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "_choices", {})
    norm._kernel.cache_clear()
    yield tmp_path / "cache" / "kernels"
    norm._kernel.cache_clear()
