"""The image tokenizer of unified_base: 256×256 images to 16×16 codes of 8,000 (FSQ 8·8·5·5·5,
the paper's levels for about 2^13 codes, 2309.15505, table 1)."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import AutoencoderConfig, FSQConfig


def recipe() -> Recipe:
    model = AutoencoderConfig(
        FSQConfig((8, 8, 5, 5, 5)),
        image_size=256,
        base_channels=64,
        multipliers=(1, 1, 2, 2, 4),
        res_blocks=2,
        decoder_channels=512,
        decoder_blocks=4,
    )
    stage = Stage(
        "autoencoder",
        20_000,
        {"encoder": 4e-4, "decoder": 4e-4},
        batch_images=32,
        warmup_ratio=0.02,
        save_every=1000,
    )
    return Recipe(model, (stage,))
