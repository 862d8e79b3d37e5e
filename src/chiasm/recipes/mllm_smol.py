"""Route A on a laptop: our encoder, an MLP projector, SmolLM2-135M with its upper half tuned."""

from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage


def recipe() -> Recipe:
    # Visual tokens drawn to the caption's words first: the language model then compares them with
    # a question's words within a few thousand questions, its first half left as it is (LOG.md).
    stages = (
        Stage(
            "align",
            220,
            {"vision": 2e-3, "projector": 2e-3},
            "embed_align",
            batch_images=32,
            optimizer="muon",
            schedule="linear",
        ),
        Stage("tune", 50, {"language_model": 3e-4}, "chat", batch_tokens=384, schedule="constant"),
        Stage(
            "settle",
            30,
            {"language_model": 3e-4},
            "chat",
            batch_tokens=384,
            warmup_ratio=0.0,
            schedule="linear",
        ),
    )
    return Recipe(
        MLLMConfig(lora=None, freeze_first_layers=15, system=""), stages, questions_per_image=4
    )
