"""Route B on a laptop: 2M parameters from scratch over text and image codes."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Schedule, Stage
from chiasm.unified.config import UnifiedConfig

RATES = {"embedding": 2e-3, "transformer": 2e-3}


def recipe() -> Recipe:
    # Each stage starts from what the last has taught (LOG.md, "The order of the unified route"):
    # drawing teaches what pictures are made of, captions what is in them, matching to compare them
    # with words, and only then can questions be answered. Some drawing stays: it is soon forgotten.
    def stage(
        name: str, steps: int, data: str, schedule: Schedule = "constant", warmup=0.0
    ) -> Stage:
        return Stage(
            name,
            steps,
            RATES,
            data,
            batch=2048,
            optimizer="muon",
            muon_iterations=3,
            schedule=schedule,
            warmup=warmup,
        )

    stages = (
        stage("draw", 80, "draw", warmup=0.05),
        stage("perceive", 90, "describe+describe+describe+draw"),
        stage("match", 160, "match+match+match+match+draw"),
        stage("converse", 130, "converse+converse+converse+match+draw"),
        stage("settle", 440, "converse+draw", "linear"),
    )
    return Recipe(UnifiedConfig(), stages, questions=5)
