"""Losses on preference pairs and labelled replies: the DPO family as an objective of a stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core.protocols import Loss, Parts
from chiasm.data.replies import CHOSEN, REJECTED, UNRELATED, ReplyBatch
from chiasm.nn.loss import supervised_loss
from chiasm.train.preference_settings import PreferenceSettings
from chiasm.train.reference import Reference


def target_log_probs(model: Any, batch: ReplyBatch, temperature: float = 1.0) -> Tensor:
    """[N] log-probabilities of a batch's supervised tokens, with a graph."""

    def head(hidden: Tensor) -> Tensor:
        logits = model.logits(hidden)
        return logits if temperature == 1.0 else logits / temperature

    (nll, _), _ = supervised_loss(model(batch), batch, head)
    return -nll


def pair_loss(settings: PreferenceSettings, chosen: Tensor, rejected: Tensor) -> Tensor:
    """[P] losses of pairs. chosen, rejected [P]: log-ratios to the reference, or for "simpo" and
    "orpo", which have none, log-probabilities."""
    ahead, beta, smooth = chosen - rejected, settings.beta, settings.label_smoothing
    if settings.loss == "ipo":
        return (ahead - 1 / (2 * beta)).square()
    if settings.loss == "hinge":
        return torch.relu(1 - beta * ahead)
    if settings.loss == "orpo":
        odds = ahead - (log1mexp(chosen) - log1mexp(rejected))
        return -beta * F.logsigmoid(odds)
    logits = beta * ahead - (settings.margin if settings.loss == "simpo" else 0.0)
    return -(1 - smooth) * F.logsigmoid(logits) - smooth * F.logsigmoid(-logits)


def label_loss(
    settings: PreferenceSettings, ratio: Tensor, good: Tensor, unrelated: Tensor
) -> tuple[Tensor, Tensor]:
    """KTO's losses [R] of labelled replies, and its estimate z of the KL divergence, at least 0.
    ratio [R]: log-ratios to the reference; good [R] bool: their labels; unrelated [U]: log-ratios
    of replies to other prompts, of which z is the mean."""
    z = unrelated.detach().mean().clamp(min=0) if len(unrelated) else ratio.new_zeros(())
    sign = torch.where(good, 1.0, -1.0).to(ratio.dtype)
    weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
    return weight * (1 - torch.sigmoid(settings.beta * sign * (ratio - z))), z


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact near 0 and far below it (Mächler, 2012); its gradient is
    finite where x is rounded to 0."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


class PreferenceLoss:
    """The loss of a stage with `preference`: called with a model and a ReplyBatch. The sum is over
    the pairs, or in "kto" over the labelled replies, and the count is their number."""

    def __init__(self, settings: PreferenceSettings, reference: Reference | None):
        self.settings, self.reference = settings, reference

    def __call__(self, model: Any, batch: ReplyBatch) -> Loss:
        log_probs = target_log_probs(model, batch)
        sums = batch.per_reply(log_probs)
        own = sums / batch.length if self.settings.averages else sums
        ratio = own
        if self.reference is not None:
            theirs = self.reference.sums(model, batch).to(own.dtype)
            ratio = own - (theirs / batch.length if self.settings.averages else theirs)
        labelled = self.settings.loss == "kto"
        values, parts = (self._labels if labelled else self._pairs)(batch, ratio)
        total = values.sum()
        if self.settings.sft:
            chosen = batch.of_kind(CHOSEN)
            total = total - self.settings.sft * (sums[chosen] / batch.length[chosen]).sum()
        return Loss(total, len(values), parts | by_modality(batch, log_probs.detach()))

    def _pairs(self, batch: ReplyBatch, ratio: Tensor) -> tuple[Tensor, Parts]:
        chosen, rejected = (ratio[side] for side in batch.pairs)
        values, n = pair_loss(self.settings, chosen, rejected), len(chosen)
        ahead = (chosen - rejected).detach()
        return values, {
            "preference": (values.detach().sum(), n),
            "margin": (self.settings.beta * ahead.sum(), n),
            "accuracy": ((ahead > 0).float().sum(), n),
            **self._log_ratios(batch, ratio),
        }

    def _labels(self, batch: ReplyBatch, ratio: Tensor) -> tuple[Tensor, Parts]:
        judged = torch.nonzero(batch.kind != UNRELATED)[:, 0]
        good = batch.kind[judged] == CHOSEN
        unrelated = ratio[batch.of_kind(UNRELATED)]
        values, z = label_loss(self.settings, ratio[judged], good, unrelated)
        parts: Parts = {"preference": (values.detach().sum(), len(values)), "kl": (z, 1)}
        return values, parts | self._log_ratios(batch, ratio)

    def _log_ratios(self, batch: ReplyBatch, ratio: Tensor) -> Parts:
        if self.reference is None:
            return {}
        found = {}
        for name, kind in (("chosen", CHOSEN), ("rejected", REJECTED)):
            own = ratio.detach()[batch.of_kind(kind)]
            found[f"log_ratio/{name}"] = (own.sum(), len(own))
        return found


def by_modality(batch: ReplyBatch, log_probs: Tensor) -> Parts:
    """Log-probabilities a token, of chosen and rejected replies, of their text and their codes of
    images apart."""
    kinds = batch.kind[batch.reply]
    host: Any = batch.on_host
    kinds_here = host.kind[host.reply]
    parts: Parts = {}
    for name, kind in (("chosen", CHOSEN), ("rejected", REJECTED)):
        for modality, coded in (("text", False), ("image", True)):
            count = int(((kinds_here == kind) & (host.code == coded)).sum())
            if count:
                mine = (kinds == kind) & (batch.code == coded)
                total = torch.where(mine, log_probs, 0.0).sum()
                parts[f"log_prob/{name}_{modality}"] = (total, count)
    return parts
