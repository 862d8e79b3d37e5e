"""How well a run uses the machine: against the products it could have computed, waiting for data,
memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from chiasm.nn.peak_flops import gemm_peak


def peak_rate(device: torch.device, dtype: torch.dtype, ranks: int) -> float:
    """FLOP/s that all ranks together could reach on large matrix products."""
    return ranks * gemm_peak(device.type, dtype, torch.get_num_threads())


def memory_in_use(device: torch.device) -> float:
    """Gigabytes: on a GPU the most that was allocated so far, else what this process holds now (at
    its highest where the system does not say)."""
    pages = Path("/proc/self/statm")
    if device.type != "cuda" and pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize() / 1e9
    return peak_memory(device) / 1e9


def peak_memory(device: torch.device) -> float:
    """Bytes this process held at its fullest since it began: of the GPU where it computes there,
    else of main memory."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def use_of(line: dict[str, float], peak: float) -> dict[str, float]:
    """A window's sums and rates with the share of the achievable rate, and the share of the time
    that went into waiting for data, instead of its seconds."""
    kept = {name: value for name, value in line.items() if name != "waited"}
    return {
        **kept,
        "mfu_measured": line["flops_per_second"] / peak,
        "data_wait": line["waited"] / max(1e-9, line["seconds"]),
    }


def in_words(line: dict[str, float]) -> str:
    """A log line for the live view."""
    rates = f"{line['tokens_per_second']:,.0f} tok/s  {line['images_per_second']:,.0f} img/s"
    use = f"{line['mfu_measured']:.0%} of peak  data {line['data_wait']:.0%}"
    return f"loss {line['loss']:.4f}  {rates}  {use}  {line['memory_gb']:.1f} GB"
