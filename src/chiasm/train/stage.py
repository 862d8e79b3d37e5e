"""What a stage of training is; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from chiasm.core.config import tag
from chiasm.core.errors import ConfigError
from chiasm.train.preference_settings import PreferenceSettings, RolloutSettings

Schedule = Literal["constant", "linear", "cosine", "wsd", "exponential", "inverse_sqrt"]
Unit = Literal["tokens", "images"]
DEFAULT_BATCH = 64
Optimizer = Literal["adamw", "stable_adamw", "muon"]


@tag("group")
@dataclass(frozen=True)
class GroupSettings:
    """What one group of the model is trained with; None takes the stage's."""

    optimizer: Optimizer | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None


@tag("guard")
@dataclass(frozen=True)
class GuardSettings:
    """When an update is refused, and what follows (train/guard.py).

    window: accepted steps that say what is usual; nothing is called a spike before a quarter of
        them. threshold: a spike is a loss and a gradient norm both so many robust deviations above
        their medians; 0 refuses only what is not finite.
    patience: refusals in a row before the weights go back to a checkpoint. rollbacks: how often
        they may before the run stops with a diagnosis.
    """

    window: int = 128
    threshold: float = 8.0
    patience: int = 5
    rollbacks: int = 3


@tag("ranks")
@dataclass(frozen=True)
class Ranks:
    """How several processes (torchrun) share a model. One process ignores this.

    fsdp_min_params: parameters above which each rank holds a part of every weight (FSDP2) and not a
        whole copy; 0 always shards. hsdp_replicas: groups of ranks that each hold the whole model
        between them (HSDP); 1 spreads it over all. tensor_parallel: neighbouring ranks that compute
        every block of a unified model together, each some of its heads (train/tensor_parallel.py);
        the rest of the model is whole on all, and fsdp_min_params does not matter.
    """

    fsdp_min_params: int = 1_000_000_000
    hsdp_replicas: int = 1
    tensor_parallel: int = 1


@tag("stage")
@dataclass(frozen=True)
class Stage:
    """One stage of training with its own data, learning rates and schedule.

    lr: learning rate by group of the model's parameters; a group that is not named is frozen.
    objectives: what is learnt of each sample, one or several joined by "+" (data/objectives.py has
        what the recipe's model can learn). source_weights: weights of the sources of mixed data in
        this stage, by name; sources that are not named are left out.
    batch_tokens, batch_images: size of one micro-batch, in tokens of packed rows, or in images for
        contrastive encoders, image tokenizers and the objective embed_align. A stage has the one
        that its model counts in (64 if neither is given) and refuses the other.
    gradient_accumulation_steps: micro-batches a step, those of all ranks together; ranks that do
        not divide it raise it to their next multiple.
    warmup_ratio: fraction of the steps in which the rate rises linearly from 0. schedule: the
        learning rate schedule after it, down to min_lr_ratio times the peak (train/schedule.py).
        decay_ratio: fraction of the steps at the end in which the schedule "wsd" falls.
        "exponential" needs a min_lr_ratio above 0.
    optimizer: "muon" updates the matrices inside the model's blocks with Muon at the same rates
        times `muon_scale`, everything else with AdamW; muon_iterations as in train/muon.py.
        "stable_adamw" is AdamW whose steps shrink where gradients outgrow their past.
    packing: which samples share a row of `batch_tokens`: "order" lays them end to end as they come,
        "knapsack" looks ahead for those that fill it (data/packing.py). max_patches: with
        "knapsack", the most image patches of a row; 0 is any number.
    groups: other settings of single groups. ema: decay of an average of the trained weights that is
        evaluated and, at the end of the stage, kept in their place; 0 is none.
    loss_reduction: what weighs alike in the loss, every supervised token or every sample (its
        tokens' mean; PaliGemma's way). gradient_checkpointing: keep a block's input only and run it
        again in the backward pass: less memory for a third more time. compile: let torch compile
        every block (train/compiled.py), which takes a minute at first. feature_cache: gigabytes
        that the features of frozen encoders may take on disk, of all runs together; 0 encodes every
        image every time.
    max_grad_norm: gradients are clipped to this global norm. autocast: "auto" measures whether
        bfloat16 is faster here.
    evaluate_every, save_every, log_every: steps; 0 is never (a stage that saves or evaluates also
        does at its end). best_metric: an evaluated metric; the checkpoint where it was highest is
        written and kept besides the newest, with a leading minus the one where it was lowest.
    evaluate_samples: held-out conversations whose loss an evaluation of either route takes, at
        most; 0 takes all. evaluate_questions: held-out questions it asks for the accuracy, at most.
        evaluate_examples: answers, and images generated by a unified model, that it keeps to show.
    preference: learn from pairs of replies, or labelled ones, with a loss of the DPO family.
        rollouts: learn from rewards of the model's own replies (GRPO), rollouts.prompts prompts a
        micro-batch. See docs/preferences.md.
    monitor_every: steps between measurements that warn before a run diverges (train/monitor.py).
        One costs about two micro-batches.
    """

    name: str
    steps: int
    lr: dict[str, float] = field(default_factory=dict)
    objectives: str = ""
    source_weights: dict[str, float] = field(default_factory=dict)
    batch_tokens: int | None = None
    batch_images: int | None = None
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.05
    schedule: Schedule = "cosine"
    min_lr_ratio: float = 0.0
    decay_ratio: float = 0.2
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    muon_scale: float = 3.0
    muon_iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    loss_reduction: Literal["token", "sample"] = "token"
    gradient_checkpointing: bool = False
    compile: bool = False
    feature_cache: float = 20.0
    max_grad_norm: float = 1.0
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    evaluate_every: int = 0
    evaluate_samples: int = 64
    evaluate_questions: int = 64
    evaluate_examples: int = 4
    save_every: int = 0
    log_every: int = 10
    monitor_every: int = 0
    best_metric: str = ""
    ema: float = 0.0
    packing: Literal["order", "knapsack"] = "order"
    max_patches: int = 0
    groups: dict[str, GroupSettings] = field(default_factory=dict)
    guard: GuardSettings = GuardSettings()
    preference: PreferenceSettings | None = None
    rollouts: RolloutSettings | None = None

    def __post_init__(self) -> None:
        if self.preference is not None or self.rollouts is not None:
            self._check_replies()
        for name in ("evaluate_every", "evaluate_samples", "evaluate_questions",
                     "evaluate_examples"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"stage '{self.name}': {name} is {getattr(self, name)}; give 0 or more"
                )
        if self.schedule == "exponential" and not self.min_lr_ratio > 0:
            raise ConfigError(
                f"stage '{self.name}': schedule exponential never reaches 0, but "
                f"min_lr_ratio is {self.min_lr_ratio}; set min_lr_ratio to what is left "
                "of the rate at the end, as 0.01"
            )
        if self.schedule == "wsd" and not 0 <= self.decay_ratio <= 1 - self.warmup_ratio:
            raise ConfigError(
                f"stage '{self.name}': warmup_ratio {self.warmup_ratio} and decay_ratio "
                f"{self.decay_ratio} are fractions of the steps and cannot exceed 1 together; "
                "lower one of them"
            )

    def batch_size(self, unit: Unit) -> int:
        """batch_tokens or batch_images, 64 where neither is given. Raises ConfigError where the
        other one is set."""
        given = {"tokens": self.batch_tokens, "images": self.batch_images}
        wrong = next(name for name in given if name != unit)
        if given[wrong] is not None:
            raise ConfigError(
                f"stage '{self.name}': batch_{wrong} is {given[wrong]}, but this stage counts its "
                f"batch in {unit}; set batch_{unit}"
            )
        size = given[unit]
        return DEFAULT_BATCH if size is None else size

    def with_batch_size(self, unit: Unit, size: int) -> Stage:
        """The stage with another batch_tokens or batch_images."""
        sizes: dict[str, int | None] = {"batch_tokens": None, "batch_images": None}
        return replace(self, **sizes | {f"batch_{unit}": size})  # type: ignore[arg-type]

    def _check_replies(self) -> None:
        """ConfigError for what does not go with preferences or rollouts."""
        name = "preference" if self.preference is not None else "rollouts"
        if self.preference is not None and self.rollouts is not None:
            raise ConfigError(
                f"stage '{self.name}': preference and rollouts are two objectives; give each a "
                "stage of its own"
            )
        if self.rollouts is not None and (self.batch_tokens or self.batch_images):
            raise ConfigError(
                f"stage '{self.name}': a micro-batch of rollouts is rollouts.prompts prompts; set "
                "that, and not batch_tokens or batch_images"
            )
        if self.packing != "order":
            raise ConfigError(
                f"stage '{self.name}': packing '{self.packing}' is not for a stage with {name}; "
                "set it to order"
            )
