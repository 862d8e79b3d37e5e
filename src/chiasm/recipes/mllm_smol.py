"""Route A on a laptop: our encoder, an MLP projector and SmolLM2-135M-Instruct with LoRA."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    align = Stage("align", steps=50, lr={"projector": 2e-3}, data="describe", batch=384)
    rates = {"projector": 1e-3, "vision": 1e-4, "adapter": 1e-3}
    tune = Stage("tune", steps=110, lr=rates, data="converse", batch=512)
    return Recipe(MLLMConfig(), (align, tune))
