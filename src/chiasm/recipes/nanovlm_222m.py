"""nanoVLM-222M (huggingface/nanoVLM, May 2025): SigLIP-B/16 and SmolLM2-135M on The Cauldron.

Published: pixel shuffle 2 (49 tokens an image of 224 pixels), everything trained at once, batches
of 256 samples of 128 tokens, 5 passes over 1.7 million samples, rates 2e-3 (projector) and 1e-4,
3 % warm-up, cosine down to a tenth; 6 hours on one H100, MMStar 35.3. The Cauldron is fifty data
sets of which this takes one; name more, or a folder of them, with --data.
"""

from chiasm.mllm.config import MLLMConfig, PixelShuffleConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions

SAMPLES, LENGTH, PASSES = 256, 128, 5


def recipe() -> Recipe:
    model = MLLMConfig(
        encoder="google/siglip-base-patch16-224",
        language_model="HuggingFaceTB/SmolLM2-135M",
        projector=PixelShuffleConfig(2),
        lora=None,
        chat_template="plain",
        max_length=8192,
        vision=TowerOptions(layer=-1, norm=True),
    )
    stage = Stage(
        "train",
        PASSES * 1_700_000 // SAMPLES,
        {"vision": 1e-4, "projector": 2e-3, "language_model": 1e-4},
        "chat",
        batch_tokens=8192,
        gradient_accumulation_steps=SAMPLES * LENGTH // 8192,
        warmup_ratio=0.03,
        min_lr_ratio=0.1,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        autocast="bfloat16",
        save_every=1000,
    )
    return Recipe(model, (stage,), data="hf:HuggingFaceM4/the_cauldron:vqav2")
