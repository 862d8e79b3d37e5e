"""LLaVA-1.5 7B with the numbers of 2310.03744: 558K captions align the projector, 665K
conversations tune it with Vicuna, one epoch each; VQAv2 78.5 and TextVQA 58.2 in the paper.

For 8 GPUs of 80 GB: torchrun --nproc-per-node 8 -m chiasm train llava15_7b. Planned (chiasm plan),
not run by us on GPUs.
"""

from chiasm.mllm.config import MLLMConfig, MLPConfig, PadConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions

BETAS = (0.9, 0.999)


def recipe() -> Recipe:
    model = MLLMConfig(
        encoder="openai/clip-vit-large-patch14-336",
        language_model="lmsys/vicuna-7b-v1.5",
        projector=MLPConfig(layers=2, merge=1),
        lora=None,
        chat_template="vicuna",
        vision=TowerOptions(layer=-2),
        image_processing=PadConfig(),
        max_length=2048,
    )
    # Batches are counted in tokens: an image is 576, so 256 captions with their images are about
    # 174,000 and 128 conversations about 131,000; the steps are the paper's own.
    align = Stage(
        "align",
        2180,
        {"projector": 1e-3},
        "caption",
        batch_tokens=5440,
        gradient_accumulation_steps=32,
        warmup_ratio=0.03,
        betas=BETAS,
        save_every=500,
    )
    tune = Stage(
        "tune",
        5197,
        {"projector": 2e-5, "language_model": 2e-5},
        "chat",
        batch_tokens=8192,
        gradient_accumulation_steps=16,
        warmup_ratio=0.03,
        betas=BETAS,
        gradient_checkpointing=True,
        save_every=500,
    )
    return Recipe(model, (align, tune), data="data/llava15")
