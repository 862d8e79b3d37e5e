"""Every quantizer here as what published classes know: a codebook and its nearest neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.unified.quantizers import FSQ, LFQ, VQEMA, Quantizer, ResidualVQ


def codebook(quantizer: Quantizer) -> Tensor | None:
    """Vectors [codes width] of which the one nearest to the encoder's output is the quantizer's
    choice (ties apart, which have no measure); None where there are none.

    LFQ takes signs: the nearest of {-1, 1}^width. FSQ rounds a squashed z, a monotone function of
    each channel by itself, so it cuts every channel at fixed places; so do the nearest neighbours
    of a product of points, in the middle between two of them (_between).
    """
    if isinstance(quantizer, ResidualVQ):
        return None
    if isinstance(quantizer, VQEMA):
        return quantizer.embedding
    everything = torch.arange(quantizer.codes)
    if isinstance(quantizer, LFQ):
        return quantizer.lookup(everything)
    if not isinstance(quantizer, FSQ):
        return None
    digits = everything[:, None] // quantizer.basis % quantizer.levels
    points = [_between(_cuts(int(levels))) for levels in quantizer.levels]
    columns = [p[digits[:, i]] for i, p in enumerate(points)]
    return torch.stack(columns, 1).float()


def _cuts(levels: int) -> Tensor:
    """Where FSQ's choice among so many levels changes (quantizers/fsq.py), in z, rising."""
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    steps = torch.arange(levels - 1, dtype=torch.float64) - levels // 2 + 0.5
    return torch.atanh((steps + offset) / half) - torch.atanh(torch.tensor(offset / half))


def _between(cuts: Tensor) -> Tensor:
    """Rising points [n + 1] whose middles are the cuts [n].

    The first one, `a` below the first cut, decides all others: point l stands a_l below cut l with
    a_{l+1} = gap_{l+1} - a_l, so a_l is ± a plus an alternating sum of gaps, and each a_l > 0
    bounds a from one side. The cuts of a tanh lie symmetrically with gaps that grow outwards;
    alternating sums of such gaps nest, so some a is left: the middle of what is.
    """
    low, high = torch.zeros(()).double(), torch.full((), torch.inf).double()
    rest = torch.zeros(()).double()  # a_l = sign · a + rest
    for number, gap in enumerate(cuts.diff()):
        rest = gap - rest
        if number % 2 == 0:
            high = torch.minimum(high, rest)
        else:
            low = torch.maximum(low, -rest)
    assert low < high
    a = (low + high) / 2 if torch.isfinite(high) else low + 1
    points = [cuts[0] - a]
    for cut in cuts:
        points.append(2 * cut - points[-1])
    return torch.stack(points)
