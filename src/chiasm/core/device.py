"""The device that models compute on: chosen in one place, moved to once.

Commands take `--device auto|cpu|cuda|cuda:N|mps` (default: the environment's CHIASM_DEVICE, else
auto). Nothing else in the package names a device: tensors are made where the tensors are that they
meet, models are moved by who loads them, batches by who feeds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chiasm.core.errors import ConfigError

PREFERRED = ("cuda", "mps")
"""Accelerators that "auto" looks for, the first that is there."""

INSTALL = {
    "cuda": "this torch has no CUDA or the machine no NVIDIA GPU that its driver shows; "
    "install a CUDA build (make demo TORCH_BACKEND=cu130, or: pip install --force-reinstall torch "
    "--index-url https://download.pytorch.org/whl/cu130)",
    "mps": "it needs a Mac with Apple silicon and macOS 14 or newer",
}


def resolve(name: str | torch.device | None = None) -> torch.device:
    """The device of this process.

    name: "auto" (CUDA if there, else MPS, else the CPU), "cpu", or a type of accelerator that this
    torch knows, with or without a number; None is the environment's CHIASM_DEVICE, else "auto".
    Under torchrun, Slurm or Ray a type without a number is the rank's own (LOCAL_RANK). Raises
    ConfigError where it is not there.
    """
    given = str(name or os.environ.get("CHIASM_DEVICE", "") or "auto")
    if given == "auto":
        given = next((kind for kind in PREFERRED if _count(kind)), "cpu")
    try:
        device = torch.device(given)
    except RuntimeError:
        raise ConfigError(
            f"--device {given}: no device of this torch; give auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type in ("cpu", "meta"):
        return device
    count = _count(device.type)
    if not count:
        how = INSTALL.get(device.type, "no such accelerator is there")
        raise ConfigError(f"--device {given}: {how}; --device cpu computes without one")
    index = local_rank() if device.index is None else device.index
    if index >= count:
        raise ConfigError(
            f"--device {given}: number {index} is asked for, but {count} of that type "
            f"{'is' if count == 1 else 'are'} there, numbered from 0; start at most {count} ranks "
            "on a machine, or give another number"
        )
    return torch.device(device.type, index)


def compute_on(name: str) -> None:
    """Let this process and those that it starts compute on a device, "" leaving it as it is.
    ConfigError where it is not there."""
    if name:
        os.environ["CHIASM_DEVICE"] = name
    use(resolve())


@contextmanager
def computing_on(name: str) -> Iterator[None]:
    """compute_on within the context; what was chosen before is restored behind it."""
    before = os.environ.get("CHIASM_DEVICE")
    try:
        compute_on(name)
        yield
    finally:
        if before is None:
            os.environ.pop("CHIASM_DEVICE", None)
        else:
            os.environ["CHIASM_DEVICE"] = before


def local_rank() -> int:
    """This process's number among those of its machine (torchrun, Slurm); 0 where it is alone."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def use(device: torch.device) -> None:
    """Make it the one that collectives, kernels and libraries use in this thread where they are
    told no device: with a model on cuda:1 they would use cuda:0 otherwise."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def model_device(model: Any) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


def moved_tensor(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from pinned memory the copy runs beside what the device computes."""
    return tensor.to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory that a CUDA device copies from without waiting; itself elsewhere."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def _count(kind: str) -> int:
    """How many devices of a type are there."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:  # a type that torch has a name for and no module
        return 0
    return module.device_count() if module.is_available() else 0
