"""PaliGemma 3B as 2407.07726 has it: SigLIP-So400m/14 at 224 pixels, a linear layer that starts at
zero, Gemma 2B; the prompt sees itself whole, every example weighs alike, all parts are trained.

The paper's pretraining is 1 billion examples, 26,000 TPUv5e-hours; this is its transfer to a task,
with the published numbers of VQAv2's (big_vision's paligemma/transfers/vqav2.py): 647,871 questions
10 times, each after the words "answer en"; 83.2 there from the pretrained model.
"""

from chiasm.mllm.config import LinearConfig, MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerOptions

RATE = 1e-5
PLACES = tuple(f"<loc{n:04}>" for n in range(1024))
SHAPES = tuple(f"<seg{n:03}>" for n in range(128))


def recipe() -> Recipe:
    model = MLLMConfig(
        encoder="google/siglip-so400m-patch14-224",
        language_model="google/gemma-2b",
        projector=LinearConfig(zero_init=True),
        lora=None,
        chat_template="paligemma",
        extra_special_tokens=(*PLACES, *SHAPES),
        attention="prefix",
        vision=TowerOptions(layer=-1, norm=True),
        max_length=512,
    )
    # 256 images of 256 tokens with a question and an answer each.
    transfer = Stage(
        "transfer",
        25_307,
        {"vision": RATE, "projector": RATE, "language_model": RATE},
        "chat",
        batch_tokens=9216,
        gradient_accumulation_steps=8,
        warmup_ratio=0.05,
        max_grad_norm=1.0,
        weight_decay=0.1,  # theirs is 1e-6 a step, not times the rate
        loss_reduction="sample",
        betas=(0.9, 0.999),
        gradient_checkpointing=True,
        save_every=1000,
    )
    return Recipe(model, (transfer,), data="data/vqav2")
