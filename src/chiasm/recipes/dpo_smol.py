"""Preference pairs for the demo's MLLM: the language model's upper half learns which of two replies
is the better one."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.preference_settings import PreferenceSettings
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    stage = Stage(
        "prefer",
        60,
        {"language_model": 3e-5},
        batch_tokens=512,
        schedule="linear",
        preference=PreferenceSettings("sigmoid", beta=0.1, sft_weight=0.2),
    )
    model = MLLMConfig(lora=None, freeze_first_layers=15)
    return Recipe(model, (stage,), init="runs/demo/mllm")
