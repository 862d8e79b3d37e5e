"""SmolVLM-256M (2504.05299): SigLIP-B/16 at 512 pixels and SmolLM2-135M, tiles, pixel shuffle 4.

Published: the parts, 64 tokens a tile of 512 pixels, images of up to 2048, a context of 8192
tokens, the words for a tile's place learned as tokens of their own, everything trained. Not
published and chosen here: rates, batches and steps. One of The Cauldron's fifty data sets, of
which more, or a folder of them, are named with --data.
"""

from chiasm.mllm.config import MLLMConfig, PixelShuffleConfig, SplitConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions


def recipe() -> Recipe:
    model = MLLMConfig(
        encoder="google/siglip-base-patch16-512",
        language_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        projector=PixelShuffleConfig(4),
        lora=None,
        max_length=8192,
        vision=TowerOptions(layer=-1, norm=True),
        image_processing=SplitConfig(longest_edge=2048, max_image_size=512),
    )
    # The projector alone first: untrained, it would pull the parts that know something about.
    align = Stage(
        "align",
        2000,
        {"projector": 1e-3},
        "chat",
        batch_tokens=16384,
        gradient_accumulation_steps=8,
        warmup_ratio=0.03,
        autocast="bfloat16",
        save_every=500,
    )
    tune = Stage(
        "tune",
        20_000,
        {"vision": 2e-5, "projector": 1e-4, "language_model": 1e-4},
        "chat",
        batch_tokens=16384,
        gradient_accumulation_steps=8,
        warmup_ratio=0.03,
        weight_decay=0.01,
        gradient_checkpointing=True,
        autocast="bfloat16",
        save_every=1000,
    )
    return Recipe(model, (align, tune), data="hf:HuggingFaceM4/the_cauldron:vqav2")
