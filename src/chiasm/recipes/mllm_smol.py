"""Route A on a laptop: our encoder, an MLP projector and SmolLM2-135M-Instruct, tuned whole."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    # Without matching, yes and no stay what the question's words suggest; and the language model's
    # own weights learn to match from fewer pictures than adapters do: LOG.md.
    rates = {"projector": 1e-3, "vision": 1e-4, "language": 3e-4}
    stages = (
        Stage("align", steps=25, lr={"projector": 2e-3}, data="describe", batch=512),
        Stage("tune", 130, rates, "converse+match", batch=768, schedule="constant"),
        Stage("settle", 90, rates, "converse", batch=768, warmup=0.0, schedule="linear"),
    )
    return Recipe(MLLMConfig(lora=None), stages, questions=6)
