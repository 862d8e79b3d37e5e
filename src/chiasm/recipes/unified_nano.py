"""Route B on a laptop: 3M parameters from scratch over text and image codes."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig

RATES = {"embedding": 2e-3, "transformer": 2e-3}


def recipe() -> Recipe:
    # Short samples first: what is in a picture is learned per picture seen, and a caption shows
    # three pictures at the price of two with questions.
    perceive = Stage(
        "perceive",
        steps=230,
        lr=RATES,
        data="describe+draw",
        batch=2048,
        optimizer="muon",
        schedule="constant",
    )
    mixed = Stage(
        "mixed", steps=150, lr=RATES, data="converse+draw", batch=2048, optimizer="muon", warmup=0.0
    )
    return Recipe(UnifiedConfig(), (perceive, mixed), questions=4)
