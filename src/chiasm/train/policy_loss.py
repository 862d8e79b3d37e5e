"""The clipped policy-gradient loss of sampled replies: GRPO and its descendants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.core.protocols import Loss, Parts
from chiasm.data.replies import ReplyBatch
from chiasm.train.preference_settings import RolloutSettings
from chiasm.train.preferences import target_log_probs

SPREAD = 1e-4
"""Added to the deviation that advantages are divided by (as in the authors' code)."""


def advantages(rewards: Sequence[float], normalise_deviation: bool = True) -> np.ndarray:
    """[G] of a group's rewards: minus their mean, divided by their (unbiased) deviation if wanted
    (2402.03300, section 4.1.2)."""
    given = np.asarray(rewards, np.float64)
    centred = given - given.mean()
    return centred / (given.std(ddof=1) + SPREAD) if normalise_deviation else centred


def token_losses(
    settings: RolloutSettings, batch: ReplyBatch, log_probs: Tensor, old: Tensor
) -> tuple[Tensor, Tensor]:
    """[N] clipped losses of tokens (PPO, 1707.06347, equation 7) and [N] bool: which were clipped.
    log_probs, old [N]: under the model and under the policy that sampled the replies."""
    assert batch.advantages is not None
    log_ratio = log_probs - old
    if settings.ratio == "sequence":
        log_ratio = (batch.per_reply(log_ratio) / batch.length)[batch.reply]
    ratio, advantage = log_ratio.exp(), batch.advantages[batch.reply]
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    free, held = ratio * advantage, bounded * advantage
    return -torch.minimum(free, held), held < free


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """[N] the estimator k3 of KL(model || reference), at least 0: r - log r - 1 of r = p_ref / p
    (Schulman, 2020)."""
    ahead = reference - log_probs
    return ahead.exp() - ahead - 1


class PolicyLoss:
    """The loss of a stage with `rollouts`: called with a model and a ReplyBatch whose replies have
    advantages. reference: has tokens(model, batch) -> [N] log-probabilities; None where kl is 0."""

    def __init__(self, settings: RolloutSettings, reference: Any | None):
        self.settings, self.reference = settings, reference

    def __call__(self, model: Any, batch: ReplyBatch) -> Loss:
        settings, n = self.settings, len(batch.reply)
        log_probs = target_log_probs(model, batch, settings.temperature)
        old = log_probs.detach() if batch.old is None else batch.old
        losses, clipped = token_losses(settings, batch, log_probs, old)
        parts: Parts = {
            "policy": (losses.detach().sum(), n),
            "clipped": (clipped.float().sum(), n),
            "entropy": (-log_probs.detach().sum(), n),
        }
        if self.reference is not None:
            divergence = k3(log_probs, self.reference.tokens(model, batch).to(log_probs.dtype))
            parts["kl"] = (divergence.detach().sum(), n)
            losses = losses + settings.kl * divergence
        total, count = self._reduced(batch, losses)
        return Loss(total, count, parts | batch.stats)

    def _reduced(self, batch: ReplyBatch, losses: Tensor) -> tuple[Tensor, int]:
        if self.settings.length_norm == "token":
            return losses.sum(), len(losses)
        if self.settings.length_norm == "constant":
            return losses.sum() / self.settings.max_tokens, len(batch.kind)
        return (batch.per_reply(losses) / batch.length).sum(), len(batch.kind)
