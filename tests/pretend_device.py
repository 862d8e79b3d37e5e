"""An accelerator that does not exist, so that machines without one can test where tensors are.

Importing this registers "pretend" as torch's private device type. A tensor on it is a wrapper
around one in main memory, so every result is a real number and equals the CPU's bit for bit, and

- an operation that mixes it with a CPU tensor of one or more dimensions raises, as CUDA does;
  copies between the two, and CPU tensors as indices, are allowed, as on CUDA;
- `.numpy()` raises, as on CUDA, and so does float64, as on MPS;
- autocast computes in bfloat16 what it does on a CPU;
- inside `syncs()` every operation that makes the host wait for a device is recorded by name: values
  that are read (item, tolist, a tensor's truth), copies to main memory, uploads that are waited
  for, and operations whose result is as long as the values say (nonzero, unique, a boolean index).

`installed()` patches what torch does below its dispatcher (torch.tensor, generators, inference
mode) for as long as it is open; the fixture `pretend` of conftest.py opens it. Not covered:
streams, pinned memory, graphs, torch.compile, triton, several devices, collectives of a vendor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.utils._device
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from chiasm.nn.kernels import KERNELS

NAME = "pretend"
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
COUNTED = {  # their results have a size that depends on values
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::_local_scalar_dense",
    "aten::equal",
}

_recorded: list[str] | None = None
operations = 0
"""On the device, since this was imported."""


class _Backend(_DummyBackendModule):
    """What torch asks of the module of a device type."""

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def current_device(self):
        return 0

    def set_device(self, _device):
        pass

    def is_initialized(self):
        return True

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def synchronize(self, *_):
        pass

    def manual_seed(self, _):
        pass

    def manual_seed_all(self, _):
        pass

    def _is_in_bad_fork(self):
        return False

    def get_rng_state(self, *_):
        return torch.get_rng_state()

    def set_rng_state(self, state, *_):
        torch.set_rng_state(state)


# The first backward pass of a process starts a thread for every device that is registered by then,
# and a process with such threads cannot be forked and then train (other tests do so). Now there is
# none; inside `installed()` backward passes run in the calling thread.
torch.ones(1, requires_grad=True).sum().backward()
_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


def on_pretend(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


@contextmanager
def syncs() -> Iterator[list[str]]:
    """The names of what made the host wait while this is open, in order."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def _record(name: str) -> None:
    if _recorded is not None:
        _recorded.append(name)


class Held(torch.Tensor):
    """A tensor of the pretend device; `raw` is its memory."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw):
        held = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
            requires_grad=raw.requires_grad,
        )
        held.raw = raw
        return held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})

    def __repr__(self):
        return f"Held({self.raw})"

    def tolist(self):
        _record("tolist")
        return self.raw.tolist()

    def data_ptr(self):
        return self.raw.data_ptr()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        # torch exchanges what the wrapper says of itself; its memory is ours to exchange.
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    def __getitem__(self, key):
        return super().__getitem__(_indices(key))

    def __setitem__(self, key, value):
        super().__setitem__(_indices(key), value)


def _indices(key):
    """Lists in an index as tensors: torch makes them below its dispatcher."""
    if isinstance(key, tuple):
        return tuple(_indices(part) for part in key)
    return torch.tensor(key) if isinstance(key, list) else key


def _note_waiting(name: str, args: tuple, kwargs: dict) -> None:
    """Record what a CUDA device would make the host wait for."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = [isinstance(t, Held) for t in given]
    if name in INDEXING:
        indices = [t for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor)]
        if any(t.dtype in (torch.bool, torch.uint8) for t in indices):
            _record(f"{name} by bool")
        elif any(not isinstance(t, Held) and t.dim() for t in indices) and ours[0]:
            _record(f"{name} by an index in main memory")
    elif (
        name == "aten::repeat_interleave" and kwargs.get("output_size") is None and any(ours)
    ) or (name in COUNTED and any(ours)):
        _record(name)
    elif name == "aten::copy_" and ours[0] != ours[1]:
        waits = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
        if waits and given[1].dim():
            _record("copy_ to main memory" if ours[1] else "copy_ from main memory")
    elif name == "aten::_to_copy" and kwargs.get("device") is not None:
        there = on_pretend(kwargs["device"])
        if ours[0] and not there:
            _record("copy to main memory")
        elif there and not ours[0] and given[0].dim() and not kwargs.get("non_blocking"):
            _record("copy from main memory")


def _call(func, args, kwargs):
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = any(isinstance(t, Held) for t in given)
    name = func.name().split(".")[0]
    if ours and name not in COPIES | INDEXING and not name.startswith("c10d::"):
        foreign = [tuple(t.shape) for t in given if not isinstance(t, Held) and t.dim()]
        if foreign:
            raise RuntimeError(f"{func}: tensors on {NAME} and on cpu meet: {foreign}")
    global operations
    operations += ours
    if _recorded is not None:
        _note_waiting(name, args, kwargs)
    plain = dict(kwargs)
    if kwargs.get("device") is not None:
        ours = on_pretend(kwargs["device"])
        plain["device"] = torch.device("cpu")

    def raw(t):
        return t.raw if isinstance(t, Held) else t

    if ours and torch.float64 in (kwargs.get("dtype"), *(t.dtype for t in given if t.dim())):
        raise RuntimeError(f"{func}: float64 on {NAME}, which MPS has not")
    out = func(*tree_map(raw, args), **tree_map(raw, plain))
    if func._schema.name.endswith("_") and args and isinstance(args[0], torch.Tensor):
        return args[0]  # in place
    if not ours:
        return out
    return tree_map(lambda t: Held(t) if _plain_tensor(t) else t, out)


def _plain_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, Held)


_ops = torch.library.Library("_", "IMPL")
_ops.fallback(lambda op, *args, **kwargs: _call(op, args, kwargs), "PrivateUse1")
_amp = torch.library.Library("_", "IMPL")
_amp.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_aten_amp = torch.library.Library("aten", "IMPL")
LOWERED = (  # what autocast on a CPU computes in the lower precision, as far as chiasm uses it
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "scaled_dot_product_attention",
)


def _cast_and_call(op, dtype_of):
    def called(*args, **kwargs):
        def cast(value):
            fits = isinstance(value, torch.Tensor) and value.dtype in (
                torch.float32,
                torch.bfloat16,
                torch.float16,
            )
            return value.to(dtype_of()) if fits else value

        with torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        ):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return called


for _name in LOWERED:
    _op = getattr(torch.ops.aten, _name)
    _lowered = _cast_and_call(_op, lambda: torch.get_autocast_dtype(NAME))
    _aten_amp.impl(_name, _lowered, "AutocastPrivateUse1")
_aten_amp.impl(
    "mse_loss",
    _cast_and_call(torch.ops.aten.mse_loss, lambda: torch.float32),
    "AutocastPrivateUse1",
)


def _made_on_cpu(make):
    """torch.tensor and torch.as_tensor fill the memory themselves, below the dispatcher."""

    def made(*args, device=None, **kwargs):
        if on_pretend(device):
            return make(*args, device="cpu", **kwargs).to(NAME)
        return make(*args, **kwargs) if device is None else make(*args, device=device, **kwargs)

    return made


class _Generator(torch.Generator):
    """A private device has no random generator: the CPU's stands in."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if on_pretend(device) else device)


def _without_gradients(mode: bool) -> Any:
    """Instead of inference mode, in which wrappers (version counters, views) have no place."""
    return torch.no_grad() if mode else torch.set_grad_enabled(True)


@contextmanager
def installed() -> Iterator[torch.device]:
    """The device, with torch patched so that all of what chiasm uses works on it."""
    constructors = torch.utils._device._device_constructors()  # `with torch.device(...)` redirects
    kept = (
        torch.tensor,
        torch.as_tensor,
        torch.utils._device._device_constructors,
        torch.Generator,
    )
    originals = {torch.tensor, torch.as_tensor}
    torch.tensor, torch.as_tensor = _made_on_cpu(torch.tensor), _made_on_cpu(torch.as_tensor)
    torch.utils._device._device_constructors = lambda: constructors | originals
    torch.Generator = _Generator  # type: ignore[misc]
    try:
        # It attends as a CPU does, in groups of segments, so that every bit can be compared.
        with (
            mock.patch.dict(KERNELS, {NAME: KERNELS["cpu"]}),
            torch.autograd.set_multithreading_enabled(False),
            mock.patch.object(torch._C, "_InferenceMode", _without_gradients),
        ):
            yield torch.device(NAME, 0)
    finally:
        (
            torch.tensor,
            torch.as_tensor,
            torch.utils._device._device_constructors,
            torch.Generator,
        ) = kept
