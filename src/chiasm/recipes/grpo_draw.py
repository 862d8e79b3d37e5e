"""Rewards for the demo's unified model: images are generated from captions, read by the model
itself, also in the mirror, and those that it reads as their caption made likelier. Training gives
once what generating several and choosing the best gives at every request."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.preference_settings import RolloutSettings
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig


def recipe() -> Recipe:
    stage = Stage(
        "reward",
        150,
        {"embedding": 1e-4, "transformer": 1e-4},
        "text_to_image",
        schedule="linear",
        log_every=5,
        rollouts=RolloutSettings({"reads": 1.0}, replies=8, prompts=8),
    )
    return Recipe(UnifiedConfig(), (stage,), init="runs/demo/unified")
