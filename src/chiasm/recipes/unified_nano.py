"""Route B on a laptop: 2M parameters from scratch over text and image codes."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Schedule, Stage
from chiasm.unified.config import UnifiedConfig

RATES = {"embedding": 2e-3, "transformer": 2e-3}


def stage(name: str, steps: int, data: str, schedule: Schedule = "constant", warmup=0.0) -> Stage:
    """What the stages of the small unified recipes have in common."""
    return Stage(
        name,
        steps,
        RATES,
        data,
        batch_tokens=2048,
        optimizer="muon",
        muon_iterations=3,
        schedule=schedule,
        warmup_ratio=warmup,
    )


def recipe() -> Recipe:
    # Each stage starts from what the last has taught (LOG.md, "The order of the unified route"):
    # drawing teaches what images are made of, captions what is in them, matching to compare them
    # with words (drawing beside it, or captions too much alike, hold that up for long); only then
    # can questions be answered.
    stages = (
        stage("draw", 60, "text_to_image", warmup=0.05),
        stage("perceive", 90, "caption+caption+caption+text_to_image"),
        stage("itm", 110, "itm"),
        stage("itm_hard", 40, "itm_hard"),
        stage("chat", 130, "chat+chat+chat+itm_hard"),
        stage("settle", 400, "chat+text_to_image"),
        stage("cool", 330, "chat+text_to_image+text_to_image+text_to_image", "linear"),
    )
    return Recipe(UnifiedConfig(), stages, questions_per_image=9)
