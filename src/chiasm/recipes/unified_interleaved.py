"""Any-to-any from one checkpoint: replies that mix text and images, images changed by words."""

from chiasm.recipes.recipe import Recipe
from chiasm.recipes.unified_nano import stage
from chiasm.unified.config import UnifiedConfig


def recipe() -> Recipe:
    # As unified_nano begins; a document holds two images, so drawing is never left out after.
    stages = (
        stage("draw", 60, "draw", warmup=0.05),
        stage("perceive", 90, "describe+describe+describe+draw"),
        stage("mix", 500, "document+document+edit+describe+draw"),
        stage("cool", 350, "document+document+edit+draw", "linear"),
    )
    return Recipe(UnifiedConfig(), stages)
