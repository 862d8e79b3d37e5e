"""Rewards for the demo's MLLM: replies to questions are sampled, and right ones made likelier."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.preference_settings import RolloutSettings
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    stage = Stage(
        "reward",
        60,
        {"language_model": 3e-5},
        schedule="linear",
        log_every=5,
        rollouts=RolloutSettings({"exact": 1.0}, replies=8, prompts=8, max_tokens=12),
    )
    model = MLLMConfig(lora=None, freeze_first_layers=15)
    return Recipe(model, (stage,), init="runs/demo/mllm")
