"""Training the image tokenizer with our quantizers against those of vector-quantize-pytorch.

Both sides are chiasm's convolutional autoencoder with the same weights, images, loss and AdamW;
only the module between encoder and decoder differs: FSQ 8·8·8, VQ-EMA of 512 codes of 16 channels,
LFQ of 9 bits, residual VQ of two such codes from one codebook. A unit is an image of 64×64, a step
16 of them, fp32. Before timing, the first loss is checked to be the same. Dead codes are revived on
neither side (the package decides by another rule).

The convolutions are most of the work, so a ratio near 1 is expected. The top-level numbers are
those of the part with the smallest ratio.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Run, alternate, report, result, rounds_argument
from chiasm.core.batch import ImageBatch
from chiasm.data import easy_vqa
from chiasm.hub.autoencoder import image_processor
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import (
    AutoencoderConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualVQConfig,
    VQConfig,
)
from chiasm.unified.quantizers import Quantized, Quantizer

IMAGES, STEPS = 16, 4
NEVER = 10**9
KINDS: dict[str, QuantizerConfig] = {
    "fsq": FSQConfig(),
    "vq": VQConfig(patience=NEVER),
    "lfq": LFQConfig(sharpness=100.0),  # the package's own
    "residual": ResidualVQConfig(patience=NEVER),
}


class Theirs(Quantizer):
    """The package's module in the place of ours, its codebook begun with our vectors."""

    def __init__(self, ours: Quantizer, config: QuantizerConfig):
        super().__init__()
        self.codes, self.width, self.depth = ours.codes, ours.width, ours.depth
        self.module = _module(config)
        if isinstance(config, VQConfig | ResidualVQConfig):
            first: Any = self.module if isinstance(config, VQConfig) else self.module.layers[0]
            book, state = first._codebook, ours.state_dict()
            book.embed.copy_(state["embedding"][None])
            book.embed_avg.copy_(state["cluster_sum"][None])
            book.cluster_size.copy_(state["cluster_size"][None])

    def forward(self, z: Tensor) -> Quantized:
        # A row of places for all: the image mode of its residual VQ breaks in 1.32.0.
        values, codes, *penalty = self.module(z.flatten(2).mT)
        total = penalty[0].sum() if penalty else z.new_zeros(())
        return Quantized(values.mT.view_as(z), codes.long(), total)


def _module(config: QuantizerConfig) -> Any:
    import vector_quantize_pytorch as package

    if isinstance(config, FSQConfig):
        return package.FSQ(levels=list(config.levels))
    if isinstance(config, LFQConfig):
        return package.LFQ(
            dim=config.bits,
            entropy_loss_weight=config.entropy,
            diversity_gamma=config.diversity,
            commitment_loss_weight=config.commitment,
        )
    shape: dict[str, Any] = {
        "dim": config.width,
        "codebook_size": config.codes,
        "decay": config.decay,
        "commitment_weight": config.commitment,
        "rotation_trick": False,
    }
    if isinstance(config, VQConfig):
        return package.VectorQuantize(**shape)
    return package.ResidualVQ(**shape, num_quantizers=config.depth, shared_codebook=True)


def sides(config: QuantizerConfig) -> tuple[Autoencoder, Autoencoder]:
    """Ours and the peer, with equal weights."""
    mine, peer = (Autoencoder(AutoencoderConfig(config)) for _ in range(2))
    if hasattr(mine.quantizer, "started"):
        mine.quantizer.started.fill_(True)  # type: ignore[operator,union-attr]
    peer.load_state_dict(mine.state_dict())
    peer.quantizer = Theirs(mine.quantizer, config)
    return mine.train(), peer.train()


def images() -> list[ImageBatch]:
    """STEPS batches of IMAGES images."""
    processor = image_processor(AutoencoderConfig())
    found = [s.images[0].load() for s in easy_vqa.load("train")[: IMAGES * STEPS]]
    return [
        ImageBatch(*processor.images(found[start : start + IMAGES]))
        for start in range(0, len(found), IMAGES)
    ]


def training(model: Autoencoder, batches: list[ImageBatch]) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        for batch in batches:
            loss = model.loss(batch)
            (loss.sum / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sum(len(batch.image_grids) for batch in batches)

    return run


def main() -> None:
    rounds = rounds_argument(__doc__, 7)
    torch.manual_seed(0)
    batches, parts = images(), {}
    for name, config in KINDS.items():
        mine, peer = sides(config)
        found, expected = (float(side.loss(batches[0]).sum.detach()) for side in (mine, peer))
        if abs(found - expected) > 1e-3 * abs(expected):
            raise SystemExit(f"tokenizer: {name}: losses differ, {found:.6f} and {expected:.6f}")
        measured = alternate(training(mine, batches), training(peer, batches), rounds)
        parts[name] = result("images/s", measured)
        print(f"{name}: {parts[name]}", flush=True)
    report("tokenizer", {**min(parts.values(), key=lambda part: part["ratio"]), "parts": parts})


if __name__ == "__main__":
    main()
