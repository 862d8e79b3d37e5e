"""Kernel selection by timing: a fast path is taken only where it is faster on this machine.

Which of two kernels is the faster depends on the processor, on what its library was built with and
on the shapes, and no list of CPU flags tells it: oneDNN, for one, falls back to a reference loop
that is hundreds of times slower where it has no kernel of its own. So every choice between kernels
is timed at first use, once for each class of shapes, never for each batch: a row's result must not
depend on how many rows are beside it.

    CHIASM_CACHE/kernels/MACHINE/CHOICE.json    what was chosen, and the seconds of each kernel

Choices are kept between processes, so that serving, evaluation and a resumed training compute with
the same kernels. Delete the folder to have them timed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from chiasm.core.cache import cache_root

TOLERANCE = 1.1
"""A kernel named earlier is taken up to so many times the seconds of the fastest: two that are as
fast must not change places from one timing to the next."""

ROUNDS = 15
"""Each kernel is timed at least so often, in turns with the others, and its least time counts: the
machine may be computing something else as well."""

BUDGET = 0.03
"""Seconds that each kernel is timed for at least; quick ones are timed more often."""

HOPELESS = 3.0
"""A kernel that has spent SLOW seconds and took so many times the least is called no more."""

SLOW = 0.1

Kernel = Callable[..., Any]
Makers = Mapping[str, Callable[[], Kernel | None]]
"""How each kernel is made, the preferred one first and the plain one last; None where this machine
does not have it."""

_choices: dict[tuple[Path, str], str] = {}


def fastest_kernel(choice: str, makers: Makers, calls: Sequence[tuple[Any, ...]]) -> Kernel:
    """The kernel to use for a class of shapes on this machine.

    choice: what is chosen and the class of shapes, in words; the same words are timed once per
    machine. calls: the arguments that kernels are timed with. One that raises RuntimeError when it
    is made or called is one that this machine does not have; the last must not.
    """
    return _made(makers[fastest_name(choice, makers, calls)])


def fastest_name(choice: str, makers: Makers, calls: Sequence[tuple[Any, ...]]) -> str:
    """Its name among the makers."""
    if len(makers) == 1:
        return next(iter(makers))
    # No lock: what is timed here may make choices of its own, from another thread.
    at = (_folder(), choice)
    name = _choices.get(at) or _read(*at)
    if name is None or name not in makers:
        name = _write(*at, *_choose(makers, calls))
    _choices[at] = name
    return name


def _made(make: Callable[[], Kernel | None]) -> Kernel:
    kernel = make()
    if kernel is None:
        raise RuntimeError("a kernel that was chosen here is not available any more")
    return kernel


def _choose(makers: Makers, calls: Sequence[tuple[Any, ...]]) -> tuple[str, dict[str, float]]:
    """The chosen name, and the time of each as a multiple of the plain one's."""
    kernels: dict[str, Kernel] = {}
    for name, make in makers.items():
        with contextlib.suppress(RuntimeError):
            kernel = make()
            if kernel is not None:
                kernels[name] = kernel
    plain = list(makers)[-1]
    ratios = dict.fromkeys(kernels, 0.0)
    for call in calls:
        seconds = _in_clean_thread(partial(timed, {name: kernels[name] for name in ratios}, call))
        ratios = {name: ratios[name] + seconds[name] / seconds[plain] for name in seconds}
        # A slow reference loop is not asked for the larger call as well.
        hopeless = 10 * min(ratios.values())
        ratios = {
            name: ratio
            for name, ratio in ratios.items()
            if name == plain or ratio < hopeless or seconds[name] < SLOW
        }
    best = min(ratios.values())
    return next(name for name in ratios if ratios[name] <= TOLERANCE * best), ratios


def timed(kernels: Mapping[str, Kernel], call: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of one call of each kernel; without those that cannot be called."""
    least: dict[str, float] = {}
    spent: dict[str, float] = {}
    for name in reversed(list(kernels)):  # the plain one first, by which the others are measured
        try:
            kernels[name](*call)  # allocates, compiles
        except RuntimeError:
            continue
        least[name] = spent[name] = _seconds(kernels[name], call)
    rounds = 1
    while rounds < ROUNDS or max(spent.values()) < BUDGET:
        for name in least:
            if spent[name] > SLOW and least[name] > HOPELESS * min(least.values()):
                continue
            seconds = _seconds(kernels[name], call)
            least[name] = min(least[name], seconds)
            spent[name] += seconds
        rounds += 1
    return least


def _seconds(kernel: Kernel, call: tuple[Any, ...]) -> float:
    began = time.perf_counter()
    kernel(*call)
    return time.perf_counter() - began


def _in_clean_thread(act: Callable[[], Any]) -> Any:
    """Gradient mode, autocast, hooks of checkpointing and fake tensors belong to a thread: timing
    must neither see nor disturb the caller's."""
    outcome: list[Any] = []

    def run() -> None:
        torch.get_num_threads()  # a new thread takes over their number when it is first asked
        try:
            with torch.no_grad():
                outcome.append((act(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def _folder() -> Path:
    return cache_root() / "kernels" / _machine(torch.get_num_threads())


@lru_cache(maxsize=8)
def _machine(threads: int) -> str:
    """What the speed of kernels depends on besides shapes."""
    capabilities = {k: v for k, v in torch.cpu.get_capabilities().items() if v}
    limits = {name: os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")}
    told = [
        platform.machine(),
        capabilities,
        torch.backends.cpu.get_cpu_capability(),
        limits,
        torch.__version__,
        threads,
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _file(folder: Path, choice: str) -> Path:
    return folder / f"{hashlib.sha256(choice.encode()).hexdigest()[:24]}.json"


def _read(folder: Path, choice: str) -> str | None:
    try:
        return json.loads(_file(folder, choice).read_text("utf-8"))["kernel"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, choice: str, name: str, ratios: Mapping[str, float]) -> str:
    """Keeps a choice; gives the one that another process has kept meanwhile, if there is one. A
    folder that cannot be written to leaves the choice to this process."""
    told = {"choice": choice, "kernel": name, "seconds_by_plain": ratios}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as part:
            json.dump(told, part, indent=1)
        try:
            os.link(part.name, _file(folder, choice))
        finally:
            os.unlink(part.name)
    except FileExistsError:
        return _read(folder, choice) or name
    except OSError:
        pass
    return name
