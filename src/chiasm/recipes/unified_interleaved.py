"""Any-to-any from one checkpoint: replies that mix text and images, images changed by words."""

from chiasm.recipes.recipe import Recipe
from chiasm.recipes.unified_nano import stage
from chiasm.unified.config import UnifiedConfig


def recipe() -> Recipe:
    # As unified_nano begins; a document holds two images, so drawing is never left out after.
    stages = (
        stage("draw", 60, "text_to_image", warmup=0.05),
        stage("perceive", 90, "caption+caption+caption+text_to_image"),
        stage("mix", 500, "interleaved+interleaved+edit+caption+text_to_image"),
        stage("cool", 350, "interleaved+interleaved+edit+text_to_image", "linear"),
    )
    return Recipe(UnifiedConfig(), stages)
