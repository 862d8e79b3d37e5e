"""Learning-rate factors by step."""

import math

from chiasm.train.stage import Stage


def factor(stage: Stage, step: int) -> float:
    """What the peak learning rate is multiplied with at a step (0 is the first): a linear rise to
    1 over the warm-up, then the schedule down to the floor, reached after the last step."""
    warm = round(stage.warmup * stage.steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = (step - warm) / max(1, stage.steps - warm)
    if stage.schedule == "constant":
        return 1.0
    fall = 1 - progress if stage.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return stage.floor + (1 - stage.floor) * fall
