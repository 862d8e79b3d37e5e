"""Chameleon 7B (2405.09818): its shape, stabilisers and optimiser as published.

From the paper: sizes, 65,536 ids of which 8,192 are image codes, 4,096 tokens of context, QK-norm,
z-loss 1e-5, dropout 0.1, AdamW and its rates, 9.2T tokens of which the last fifth is a better half
of the data. 2^23 tokens a step is remembered from its table of settings, not checked. An
exponential never reaches the paper's 0: here it ends at a hundredth.

It wants 856,481 A100-hours: look with `chiasm plan chameleon_7b`. The image tokenizer has to be
given, --model.tokenizer: a trained one with 8,192 codes of 512-pixel images at stride 16.
"""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig

CODES, STEP, TOKENS = 8192, 2**23, 9.2e12


def recipe() -> Recipe:
    model = UnifiedConfig(
        tokenizer="runs/chameleon_tokenizer",
        text_vocabulary=65_536 - CODES,
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        intermediate_size=11_008,
        qk_norm=True,
        z_loss=1e-5,
        dropout=0.1,
        rope_theta=10_000.0,
        image_weight=1.0,
        factorized_code_embedding=False,
        local_attention_init=False,
        max_length=4096,
    )
    steps = round(TOKENS / STEP)
    stage = Stage(
        "pretrain",
        steps,
        {"embedding": 1e-4, "transformer": 1e-4},
        "chat+text_to_image",
        batch_tokens=4096,
        gradient_accumulation_steps=STEP // 4096,
        warmup_ratio=4000 / steps,
        schedule="exponential",
        min_lr_ratio=0.01,
        weight_decay=0.1,
        eps=1e-5,
        gradient_checkpointing=True,
        save_every=1000,
        monitor_every=200,
    )
    return Recipe(model, (stage,))
