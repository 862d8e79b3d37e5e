"""Route B on a laptop: 3M parameters from scratch over text and image codes."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Schedule, Stage
from chiasm.unified.config import UnifiedConfig

RATES = {"embedding": 2e-3, "transformer": 2e-3}


def recipe() -> Recipe:
    # Each stage starts from what the last has taught (LOG.md, "The order of the unified route"):
    # drawing teaches what pictures are made of, captions and matching what is in them, and only
    # then can a question be compared with a picture.
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
            schedule=schedule,
            warmup=warmup,
        )

    stages = (
        stage("draw", 200, "draw", warmup=0.05),
        stage("perceive", 300, "describe+match"),
        stage("converse", 320, "converse+match"),
        stage("settle", 600, "converse+draw+draw", "linear"),
    )
    return Recipe(UnifiedConfig(), stages, questions=4)
