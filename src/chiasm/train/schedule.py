"""Learning-rate factors by step."""

from __future__ import annotations

import math

from chiasm.train.stage import Stage


def factor(stage: Stage, step: int) -> float:
    """What the peak learning rate is multiplied with at a step (0 is the first): a linear rise to
    1 over the warm-up, then the schedule down to the floor, reached after the last step.

    wsd (warm-up, stable, decay: MiniCPM, 2404.06395, section 4.2) stays at 1 and falls linearly
    over the last `cooldown` of the steps. exponential is floor^progress. inverse_sqrt is
    sqrt(warm / step) with both counted from 1 (1706.03762, equation 3, divided by its peak), never
    below the floor.
    """
    warm = round(stage.warmup_ratio * stage.steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = (step - warm) / max(1, stage.steps - warm)
    match stage.schedule:
        case "constant":
            return 1.0
        case "exponential":
            return stage.min_lr_ratio**progress
        case "inverse_sqrt":
            return max(stage.min_lr_ratio, math.sqrt((warm + 1) / (step + 1)))
        case "wsd":
            cool = max(1, round(stage.decay_ratio * stage.steps))
            fall = min(1.0, (stage.steps - step) / cool)
        case "linear":
            fall = 1 - progress
        case "cosine":
            fall = (1 + math.cos(math.pi * progress)) / 2
    return stage.min_lr_ratio + (1 - stage.min_lr_ratio) * fall


def rates(stage: Stage) -> dict[str, list[float]]:
    """The learning rate of every group at every step of a stage."""
    factors = [factor(stage, step) for step in range(stage.steps)]
    return {name: [peak * f for f in factors] for name, peak in stage.lr.items()}
