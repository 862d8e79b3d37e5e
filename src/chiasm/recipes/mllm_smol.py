"""Route A on a laptop: our encoder, an MLP projector and SmolLM2-135M-Instruct, tuned whole."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    align = Stage("align", steps=25, lr={"projector": 2e-3}, data="describe", batch=512)
    # Without matching, yes and no stay what the question's words suggest; and the language model's
    # own weights learn to match from fewer pictures than adapters do: LOG.md.
    rates = {"projector": 1e-3, "vision": 1e-4, "language": 3e-4}
    tune = Stage("tune", steps=160, lr=rates, data="converse+match", batch=1024)
    return Recipe(MLLMConfig(lora=None), (align, tune), questions=6)
