"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chiasm.core.protocols import SamplingParams


def choose(
    logits: Tensor,
    sampling: SamplingParams,
    generator: torch.Generator | None = None,
    of_images: Tensor | None = None,
) -> Tensor:
    """logits [N V] (-inf is forbidden) -> ids [N]: greedy at temperature 0, else from the softmax
    at the temperature after top-k and top-p. of_images [N]: which rows choose as sampling.of_images
    says."""
    inside = sampling.of_images
    if of_images is None or inside is sampling:
        if sampling.temperature <= 0:
            return logits.argmax(-1)
        share = probabilities(logits, sampling)
    else:
        kinds = (probabilities(logits, kind) for kind in (inside, sampling))
        share = torch.where(of_images[:, None], *kinds)
    # A draw from p is the argmax of p / e with e exponential (the Gumbel-max trick in linear
    # space): the same distribution as torch.multinomial at a fraction of its time on a CPU.
    noise = torch.empty_like(share).exponential_(generator=generator)
    return (share / noise.clamp_min_(torch.finfo(noise.dtype).tiny)).argmax(-1)


def choose_each(
    logits: Tensor, sampling: SamplingParams, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """logits [N V] -> ids [N] of rows that each have a source of randomness of their own, None for
    one that takes the likeliest: what `choose` gives of each alone."""
    if all(generator is None for generator in generators):
        return logits.argmax(-1)
    share = probabilities(logits, sampling)
    noise = torch.ones_like(share)
    for row, generator in zip(noise, generators, strict=True):
        if generator is not None:
            row.exponential_(generator=generator)
    return (share / noise.clamp_min_(torch.finfo(noise.dtype).tiny)).argmax(-1)


def probabilities(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """The distribution [N V] that `choose` draws from."""
    if sampling.temperature <= 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits.float() / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        worst = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, float("-inf"))
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        # A token stays while those before it have not yet reached top_p: the first always does.
        late = share.cumsum(-1) - share >= sampling.top_p
        logits = logits.scatter(-1, places, ordered.masked_fill(late, float("-inf")))
    return logits.softmax(-1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u) (classifier-free guidance, 2207.12598, eq. 6). On logits instead of
    log-probabilities it differs by a constant a row, which no choice depends on."""
    return torch.lerp(unconditional, conditional, scale)
