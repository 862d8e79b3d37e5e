"""Route B on a laptop: 5M parameters from scratch over text and image codes."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig


def recipe() -> Recipe:
    stage = Stage(
        "mixed",
        steps=600,
        lr={"embedding": 2e-3, "transformer": 2e-3},
        data="converse+draw",
        batch=2048,
        optimizer="muon",
    )
    return Recipe(UnifiedConfig(), (stage,), shift=8)
