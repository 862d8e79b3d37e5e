"""Route B for one GPU: about 150M parameters over 256-pixel images of 16 × 16 codes. Planned, not
run by us on one.

    chiasm train tokenizer_base --data D
    chiasm precompute runs/tokenizer_base codes --data D
    chiasm train unified_base --data D --model.image_codes codes

QK-norm and z-loss as Chameleon; rates scaled from what the small models here take.
"""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import UnifiedConfig

RATES = {"embedding": 6e-4, "transformer": 6e-4}


def recipe() -> Recipe:
    model = UnifiedConfig(
        tokenizer="runs/tokenizer_base",
        text_vocabulary=16_384,
        hidden_size=768,
        layers=16,
        heads=12,
        kv_heads=12,
        intermediate_size=2048,
        rope_theta=10_000.0,
        image_weight=0.5,
        local_attention_init=False,
        max_length=1024,
    )
    stage = Stage(
        "both",
        20_000,
        RATES,
        "chat+text_to_image",
        batch_tokens=32_768,
        warmup_ratio=0.02,
        schedule="wsd",
        min_lr_ratio=0.01,
        weight_decay=0.1,
        save_every=1000,
        monitor_every=200,
    )
    return Recipe(model, (stage,))
