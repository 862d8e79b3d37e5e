"""Ours and a peer timed in turns, and the JSON line every benchmark ends with."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chiasm.nn.precision import working_dtype

Run = Callable[[], float]
"""Does one round of work and returns how many units of it were done."""


@dataclass(frozen=True)
class Comparison:
    """Medians over the rounds. ours, peer: units a second; *_seconds: seconds a round; spread: the
    larger of the two sides' interquartile range / median."""

    ours: float
    peer: float
    spread: float
    ours_seconds: float
    peer_seconds: float

    @property
    def ratio(self) -> float:
        """Above 1 ours is faster."""
        return self.ours / self.peer


def alternate(
    ours: Run, peer: Run, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Comparison:
    """Run both in turns, `rounds` times each after one round that does not count. ValueError for
    fewer than one round."""
    if rounds < 1:
        raise ValueError(f"alternate: {rounds} rounds measure nothing; give at least 1")
    sides = {"ours": ours, "peer": peer}
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        # Who goes second finds the caches and the clock frequency as the first left them.
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            began = clock()
            units = sides[name]()
            spent = clock() - began
            if number:
                seconds[name].append(spent)
                rates[name].append(units / spent)
    return Comparison(
        float(np.median(rates["ours"])),
        float(np.median(rates["peer"])),
        max(spread_of(rates["ours"]), spread_of(rates["peer"])),
        float(np.median(seconds["ours"])),
        float(np.median(seconds["peer"])),
    )


def result(unit: str, measured: Comparison, **extra: object) -> dict:
    """What the JSON line says of a comparison, to four digits."""
    numbers = {"ours": measured.ours, "peer": measured.peer, "ratio": measured.ratio}
    return {
        **{k: round_to(v) for k, v in numbers.items()},
        "unit": unit,
        "spread": round_to(measured.spread),
        **extra,
    }


def report(name: str, said: dict) -> None:
    """Print the JSON line; nothing may be printed after it."""
    print(json.dumps({"name": name, **said}), flush=True)


def round_to(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def rounds_argument(description: str | None, default: int) -> int:
    """--rounds of the command line."""
    return _parser(description, default).parse_args().rounds


@dataclass(frozen=True)
class Precision:
    """What both sides of a training compute in: "fp32", or "bf16" by autocast over fp32 weights."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def __call__(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.name == "bf16")


def training_arguments(description: str | None, default: int) -> tuple[int, Precision]:
    """--rounds and --precision of the command line; by default what is faster on this machine, as a
    stage measures it (nn/precision.py)."""
    parser = _parser(description, default)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="of both sides (default: the faster one here)"
    )
    given = parser.parse_args()
    lower = working_dtype("auto", torch.device("cpu")) == torch.bfloat16
    return given.rounds, Precision(given.precision or ("bf16" if lower else "fp32"))


def _parser(description: str | None, default: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=default, help=f"rounds that count (default {default})"
    )
    return parser


def spread_of(values: Sequence[float]) -> float:
    """Interquartile range / median."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle)
