"""Where a model looked when it gave a reply: how much each place of a picture spoke for it.

What stands for a picture (the encoder's features, or the embeddings of its codes) times the
gradient of the reply's log-likelihood: to first order, what would be lost if that place said
nothing (gradient times input, 1605.01713).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Encoded, pack
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.nn.loss import supervised_loss

TINT = (255, 96, 0)
STRONGEST = 0.8
"""How much of the tint there is where the model looked most."""

SMALLEST = 256
"""Pixels of a shown picture's longer side, at least."""


@dataclass(frozen=True)
class Look:
    """A picture as the model sees it, and the share [rows columns] of each place in what the
    picture said for the reply (sums to 1; 0 where a place spoke against it)."""

    picture: PIL.Image.Image
    share: np.ndarray

    def shown(self) -> PIL.Image.Image:
        """The picture in grey, tinted where the model looked."""
        scale = max(1, round(SMALLEST / max(self.picture.size)))
        size = self.picture.width * scale, self.picture.height * scale
        grey = np.asarray(self.picture.resize(size).convert("L").convert("RGB"), np.float32)
        heat = PIL.Image.fromarray((self.share / max(self.share.max(), 1e-9)).astype(np.float32))
        smooth = np.asarray(heat.resize(size, PIL.Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
        mixed = grey + STRONGEST * smooth * (np.array(TINT, np.float32) - grey)
        return PIL.Image.fromarray(mixed.round().astype(np.uint8))


def look(model: Any, processor: Processor, sample: Sample, reply: str) -> list[Look]:
    """One Look a picture (or a tile of one) of a conversation that ends with the user's turn, at
    the model's reply to it. Costs about three times what reading both does. Raises DataError as
    `encode`."""
    encoded = processor.alternatives(sample, [reply])
    if encoded.grids is None:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        batch = pack([[encoded]]).to(next(model.parameters()).device)
        # Cloned: what a server remembers of pictures was computed without any graph.
        seen = model.seen(batch).detach().clone().requires_grad_()
        (nll, _), _ = supervised_loss(model(batch, seen=seen), batch.targets, model.logits)
        (gradient,) = torch.autograd.grad(-nll.sum(), seen)
    worth = (gradient * seen.detach()).sum(-1).clamp_min(0).cpu()
    pictures = processor.codec.shown(encoded)
    shares = _shares(worth, encoded, processor.codec.depth)
    return [Look(picture, share) for picture, share in zip(pictures, shares, strict=True)]


def _shares(worth: Tensor, encoded: Encoded, depth: int) -> Iterator[np.ndarray]:
    """[rows columns] of each picture from what its places are worth [S]; class tokens, which stand
    before a picture's own, are left out."""
    assert encoded.grids is not None
    sizes = encoded.grids.prod(1)
    extra = (len(worth) - int(sizes.sum())) // len(sizes)
    for own, (rows, columns) in zip(
        worth.split([int(size) + extra for size in sizes]), encoded.grids.tolist(), strict=True
    ):
        places = own[extra:].view(rows, columns // depth, depth).sum(-1).numpy()
        total = float(places.sum())
        yield places / total if total > 0 else np.full_like(places, 1 / places.size)
