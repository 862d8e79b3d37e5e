"""What a stage of training is; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chiasm.core.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine", "wsd", "exponential", "inverse_sqrt"]


@dataclass(frozen=True)
class Stage:
    """One stretch of training with its own data, learning rates and schedule.

    lr: learning rate by group of the model; a group that is not named is frozen.
    data: which view of the data this stage sees (the recipe's model knows its views).
    batch: size of one micro-batch, in tokens for packed text and in pictures for the encoder and
        the autoencoder. accumulate: micro-batches a step.
    warmup: fraction of the steps that rises linearly from 0. schedule: what follows, down to
        `floor` times the peak (train/schedule.py). cooldown: fraction of the steps at the end in
        which the schedule "wsd" falls. "exponential" needs a floor above 0.
    optimizer: "muon" updates the matrices inside the model's blocks with Muon at the same rates
        times `muon_scale`, everything else with AdamW; muon_iterations as in train/muon.py.
    clip: largest global gradient norm. autocast: "auto" measures whether bfloat16 is faster here.
    evaluate_every, save_every, log_every: steps; 0 is never (a stage always saves at its end).
    """

    name: str
    steps: int
    lr: dict[str, float] = field(default_factory=dict)
    data: str = ""
    batch: int = 64
    accumulate: int = 1
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    floor: float = 0.0
    cooldown: float = 0.2
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.0
    muon_scale: float = 3.0
    muon_iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    evaluate_every: int = 0
    save_every: int = 0
    log_every: int = 10

    def __post_init__(self) -> None:
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
