"""What a stage that learns from preferences or rewards is; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chiasm.core.config import tag
from chiasm.core.errors import ConfigError

PreferenceKind = Literal["sigmoid", "ipo", "hinge", "simpo", "orpo", "kto"]


@tag("preference")
@dataclass(frozen=True)
class PreferenceSettings:
    """A loss on pairs of a chosen and a rejected reply, or on labelled ones (train/preferences.py).

    loss: "sigmoid" (DPO, 2305.18290, equation 7), "ipo" (2310.12036, equation 17), "hinge" (SLiC,
        2305.10425), "simpo" (2405.14734, equation 6), "orpo" (2403.07691, equation 6) or "kto"
        (2402.01306, equation 7; of labelled replies, and of pairs as two of them).
    beta: how much a log-ratio counts; in "ipo" the regularisation τ, in "orpo" the weight λ of the
        odds ratio. label_smoothing: probability that a pair is labelled the wrong way round (of
        "sigmoid" and "simpo"). margin: γ of "simpo", by which the chosen reply is to be ahead.
    log_probs: whether the log-probability of a reply is the sum over its tokens or their mean;
        "auto" is the mean for "ipo", "simpo" and "orpo" (their definitions) and the sum otherwise.
    sft_weight: of the chosen replies' cross entropy, mean over the tokens of each, added to the
        loss; None is 1 for "orpo", of which it is a part, and 0 otherwise.
    desirable_weight, undesirable_weight: of good and bad replies in "kto".
    reference: what log-ratios are relative to ("simpo" and "orpo" have none). "start" are the
        weights that the stage begins with, whose log-probabilities are computed once and kept on
        disk; "adapters" is the model without its LoRA adapters; "auto" chooses the latter where
        the stage trains nothing but adapters that are still without effect.
    """

    loss: PreferenceKind = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.5
    log_probs: Literal["auto", "sum", "mean"] = "auto"
    sft_weight: float | None = None
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Literal["auto", "adapters", "start"] = "auto"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"preference.beta is {self.beta}; give a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"preference.label_smoothing is {self.label_smoothing}; give 0 or more, below 0.5"
            )
        if self.label_smoothing and self.loss not in ("sigmoid", "simpo"):
            raise ConfigError(
                f"preference.label_smoothing is {self.label_smoothing}, but the loss "
                f"'{self.loss}' has no smoothed form; set it to 0"
            )

    @property
    def has_reference(self) -> bool:
        return self.loss not in ("simpo", "orpo")

    @property
    def averages(self) -> bool:
        """Whether log-probabilities of replies are means over their tokens."""
        if self.log_probs == "auto":
            return self.loss in ("ipo", "simpo", "orpo")
        return self.log_probs == "mean"

    @property
    def sft(self) -> float:
        if self.sft_weight is None:
            return float(self.loss == "orpo")
        return self.sft_weight


@tag("rollouts")
@dataclass(frozen=True)
class RolloutSettings:
    """Policy gradients on the model's own replies (GRPO, 2402.03300, section 4.1).

    rewards: weight by name. A name is a tag of recipes/rewards.py ("exact", "choice", "anls",
        "relaxed", "reads", ...) or module:function of the user's own, reward(sample, reply) ->
        float | dict. time_limit: seconds that one call of a user's function may take.
    replies: G, how many replies a prompt gets. prompts: in a micro-batch. max_tokens, temperature,
        top_p: of sampling text; images are drawn with the same temperature.
    updates: optimiser steps made of the same rollouts; above 1 the later ones are off-policy, and
        the ratio to the policy that sampled counts.
    normalise_deviation: advantages are divided by the deviation of the group's rewards (GRPO) or
        not (Dr. GRPO, 2503.20783). length_norm: "reply" takes the mean over each reply's tokens
        (GRPO), "token" weighs all tokens of the step alike (DAPO, 2503.14476, section 3.3),
        "constant" divides each reply's sum by max_tokens (Dr. GRPO).
    clip_low, clip_high: how far the ratio may be from 1 (DAPO's clip-higher: 0.2, 0.28). ratio: of
        tokens, or of whole "sequence"s (GSPO, 2507.18071, equation 7).
    kl: weight of the KL divergence from the reference, estimator k3 (2402.03300, equation 4); 0
        needs no reference. reference: as in PreferenceSettings.
    filter_groups: groups whose replies all have the same reward teach nothing and are left out
        (DAPO, section 3.2); resample: how often further prompts are drawn in their place.
    truncated: replies cut off at max_tokens are learnt like others ("keep"), carry no loss ("mask",
        DAPO's overlong filtering) or, with "penalise", lose up to 1 of reward over the last
        `overlong` tokens before max_tokens (DAPO, equation 13).
    """

    rewards: dict[str, float] = field(default_factory=lambda: {"exact": 1.0})
    replies: int = 8
    prompts: int = 4
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    updates: int = 1
    normalise_deviation: bool = True
    length_norm: Literal["reply", "token", "constant"] = "reply"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: Literal["token", "sequence"] = "token"
    kl: float = 0.0
    reference: Literal["auto", "adapters", "start"] = "auto"
    filter_groups: bool = True
    resample: int = 0
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    overlong: int = 0
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        if self.replies < 2:
            raise ConfigError(
                f"rollouts.replies is {self.replies}; advantages compare replies: give 2 or more"
            )
        if not self.rewards:
            raise ConfigError("rollouts.rewards is empty; name at least one, as exact")
        for name in ("prompts", "max_tokens", "updates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollouts.{name} is {getattr(self, name)}; give 1 or more")
        if not self.temperature > 0:
            raise ConfigError(
                f"rollouts.temperature is {self.temperature}: all replies of a group would be the "
                "same; give a number above 0"
            )
        if (self.truncated == "penalise") != bool(self.overlong):
            raise ConfigError(
                f"rollouts.truncated is '{self.truncated}' and overlong {self.overlong}; give "
                "penalise and a number of tokens together"
            )
