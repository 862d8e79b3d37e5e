"""Emu3 8B (2409.18869): its shape as in the published weights, its optimiser as far as is known.

From the weights: sizes, 184,622 ids of which 32,768 are image codes, grouped queries, RoPE base
1e6, no QK-norm, dropout 0.1. Image tokens weigh 0.5 (the paper). Remembered from it, not checked:
a rate of 5e-5 on a cosine to 0, the first phase at 5,120 tokens. Steps and batch are a guess
to plan with: 1T tokens at 2^22 a step.

The image tokenizer has to be given, --model.tokenizer: a trained one with 32,768 codes at stride 8;
model.hf_networks {"kind": "hf_networks", "family": "emu3", "settings": {}} has its networks.
"""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig

CODES, STEP, TOKENS, CONTEXT = 32_768, 2**22, 1e12, 5120


def recipe() -> Recipe:
    model = UnifiedConfig(
        tokenizer="runs/emu3_tokenizer",
        text_vocabulary=184_622 - CODES,
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        intermediate_size=14_336,
        qk_norm=False,
        z_loss=0.0,
        dropout=0.1,
        rope_theta=1_000_000.0,
        image_weight=0.5,
        factorized_code_embedding=False,
        local_attention_init=False,
        max_length=CONTEXT,
    )
    stage = Stage(
        "pretrain",
        round(TOKENS / STEP),
        {"embedding": 5e-5, "transformer": 5e-5},
        "chat+text_to_image",
        batch_tokens=CONTEXT,
        gradient_accumulation_steps=STEP // CONTEXT,
        warmup_ratio=0.01,
        weight_decay=0.1,
        gradient_checkpointing=True,
        save_every=1000,
        monitor_every=200,
    )
    return Recipe(model, (stage,))
