"""What a stage of training is; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chiasm.core.config import tag
from chiasm.core.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine", "wsd", "exponential", "inverse_sqrt"]
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

    shard: parameters above which each rank holds a part of every weight (FSDP2) and not a whole
        copy; 0 always shards. replicas: groups of ranks that each hold the whole model between
        them (HSDP); 1 spreads it over all. tensor: neighbouring ranks that compute every block of
        a unified model together, each some of its heads (train/split.py); the rest of the model is
        whole on all, and `shard` is not asked.
    """

    shard: int = 1_000_000_000
    replicas: int = 1
    tensor: int = 1


@tag("stage")
@dataclass(frozen=True)
class Stage:
    """One stretch of training with its own data, learning rates and schedule.

    lr: learning rate by group of the model; a group that is not named is frozen.
    data: which view of the data this stage sees (the recipe's model knows its views). mix: weights
        of the sources of mixed data in this stage, by name; those not named are left out.
    batch: size of one micro-batch, in tokens for packed text and in images for the encoder and
        the autoencoder. accumulate: micro-batches a step, those of all ranks together; ranks that
        do not divide it raise it to their next multiple.
    warmup: fraction of the steps that rises linearly from 0. schedule: what follows, down to
        `floor` times the peak (train/schedule.py). cooldown: fraction of the steps at the end in
        which the schedule "wsd" falls. "exponential" needs a floor above 0.
    optimizer: "muon" updates the matrices inside the model's blocks with Muon at the same rates
        times `muon_scale`, everything else with AdamW; muon_iterations as in train/muon.py.
        "stable_adamw" is AdamW whose steps shrink where gradients outgrow their past.
    packing: which samples share a row of `batch` tokens: "order" lays them end to end as they come,
        "knapsack" looks ahead for those that fill it (data/packing.py). patches: with "knapsack",
        the most of a row; 0 is any number.
    groups: other settings of single groups. ema: decay of an average of the trained weights that is
        evaluated and, at the end of the stage, kept in their place; 0 is none.
    normalise: what weighs alike in the loss, every supervised token or every example (its tokens'
        mean; PaliGemma's way). recompute: keep a block's input only and run it again in the
        backward pass: less memory for a third more time. compile: let torch compile every block
        (train/compiled.py), which takes a minute at first. feature_cache: gigabytes that the
        features of frozen encoders may take on disk, of all runs together; 0 encodes every image
        every time.
    clip: largest global gradient norm. autocast: "auto" measures whether bfloat16 is faster here.
    evaluate_every, save_every, log_every: steps; 0 is never (a stage that saves or evaluates also
        does at its end). best: an evaluated metric; the checkpoint where it was highest is written
        and kept besides the newest, with a leading minus the one where it was lowest.
    evaluate_samples: held-out conversations whose loss an evaluation of either route takes, at
        most; 0 takes all. evaluate_questions: held-out questions it asks for the accuracy, at most.
        evaluate_examples: answers, and images drawn by a unified model, that it keeps to look at.
    monitor_every: steps between looks at what goes wrong before a run does (train/monitor.py). A
        look costs about two micro-batches.
    """

    name: str
    steps: int
    lr: dict[str, float] = field(default_factory=dict)
    data: str = ""
    mix: dict[str, float] = field(default_factory=dict)
    batch: int = 64
    accumulate: int = 1
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    floor: float = 0.0
    cooldown: float = 0.2
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    muon_scale: float = 3.0
    muon_iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    normalise: Literal["token", "sample"] = "token"
    recompute: bool = False
    compile: bool = False
    feature_cache: float = 20.0
    clip: float = 1.0
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    evaluate_every: int = 0
    evaluate_samples: int = 64
    evaluate_questions: int = 64
    evaluate_examples: int = 4
    save_every: int = 0
    log_every: int = 10
    monitor_every: int = 0
    best: str = ""
    ema: float = 0.0
    packing: Literal["order", "knapsack"] = "order"
    patches: int = 0
    groups: dict[str, GroupSettings] = field(default_factory=dict)
    guard: GuardSettings = GuardSettings()

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "evaluate_samples", "evaluate_questions",
                     "evaluate_examples"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"stage '{self.name}': {name} is {getattr(self, name)}; give 0 or more"
                )
        if self.schedule == "exponential" and not self.floor > 0:
            raise ConfigError(
                f"stage '{self.name}': schedule exponential never reaches 0, but floor is "
                f"{self.floor}; set floor to what is left of the rate at the end, as 0.01"
            )
        if self.schedule == "wsd" and not 0 <= self.cooldown <= 1 - self.warmup:
            raise ConfigError(
                f"stage '{self.name}': warmup {self.warmup} and cooldown {self.cooldown} are "
                "fractions of the steps and cannot exceed 1 together; lower one of them"
            )
