"""The image tokenizer: 64×64 images to 8×8 codes of 512 (FSQ 8·8·8)."""

from chiasm.recipes.recipe import Recipe
from chiasm.train.stage import Stage
from chiasm.unified.config import AutoencoderConfig


def recipe() -> Recipe:
    stage = Stage(
        "autoencoder",
        steps=700,
        lr={"encoder": 2e-3, "decoder": 2e-3},
        batch_images=16,
        optimizer="muon",
        warmup_ratio=0.02,
        muon_iterations=3,
    )
    return Recipe(AutoencoderConfig(caption_loss_weight=0.05), (stage,))
