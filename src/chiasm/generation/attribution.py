"""Where a model looked when it gave a reply: how much each place of an image spoke for it.

Integrated gradients (1703.01365): on the straight way from an image without contrast to the
image, what each place adds to the reply's log-likelihood. The places' worths add up to what the
image as a whole did. Taken where the image enters the model (pixels, or the embeddings of its
codes): behind an encoder every place knows of all others, and gradients there point anywhere
(LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Encoded, pack
from chiasm.core.device import model_device
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.nn.loss import supervised_loss

TINT = (255, 96, 0)
STRONGEST = 0.8
"""How much of the tint there is where the model looked most."""

STEPS = 8
"""Images on the way from one without contrast."""

TOKENS = 1024
"""How many are computed together at most; one image may have more."""

SMALLEST = 256
"""Pixels of a shown image's longer side, at least."""


@dataclass(frozen=True)
class Look:
    """An image as the model sees it, and the share [rows columns] of each place in what the
    image said for the reply (sums to 1; 0 where a place spoke against it)."""

    image: PIL.Image.Image
    share: np.ndarray

    def shown(self) -> PIL.Image.Image:
        """The image in grey, tinted where the model looked."""
        scale = max(1, round(SMALLEST / max(self.image.size)))
        size = self.image.width * scale, self.image.height * scale
        grey = np.asarray(self.image.resize(size).convert("L").convert("RGB"), np.float32)
        heat = PIL.Image.fromarray((self.share / max(self.share.max(), 1e-9)).astype(np.float32))
        smooth = np.asarray(heat.resize(size, PIL.Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
        mixed = grey + STRONGEST * smooth * (np.array(TINT, np.float32) - grey)
        return PIL.Image.fromarray(mixed.round().astype(np.uint8))


def look(model: Any, processor: Processor, sample: Sample, reply: str) -> list[Look]:
    """One Look an image (or a tile of one) of a conversation that ends with the user's turn, at
    the model's reply to it. Costs as much as a training step on STEPS such conversations. Raises
    DataError as `encode`."""
    encoded = processor.alternatives(sample, [reply])
    if encoded.image_grids is None:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        spoke = worth(model, encoded).clamp_min(0).cpu()
    images = processor.codec.shown(encoded)
    places = spoke.split(encoded.image_grids.prod(1).tolist())
    grids = encoded.image_grids.tolist()
    depth = processor.codec.depth
    return [
        Look(image, _shares(own.view(rows, columns // depth, depth).sum(-1).numpy()))
        for image, own, (rows, columns) in zip(images, places, grids, strict=True)
    ]


def worth(model: Any, encoded: Encoded) -> Tensor:
    """What each place of the images adds to the log-likelihood of what is supervised [S]; all
    together, about what is lost with images that are their own mean everywhere."""
    device = model_device(model)
    image = model.seen(pack([[encoded]]).to(device)).detach()
    sizes = encoded.image_grids.prod(1).tolist()  # type: ignore[union-attr]
    blank = torch.cat([own.mean(0).expand_as(own) for own in image.split(sizes)])
    gradient = torch.zeros_like(image)
    ways = (torch.arange(STEPS, device=device) + 0.5) / STEPS
    for way in ways.split(max(1, TOKENS // len(encoded))):
        batch = pack([[encoded]] * len(way)).to(device)
        seen = torch.lerp(blank, image, way[:, None, None]).flatten(0, 1).requires_grad_()
        (nll, _), _ = supervised_loss(model(batch, seen=seen), batch, model.logits)
        (slope,) = torch.autograd.grad(-nll.sum(), seen)
        gradient += slope.view(len(way), *image.shape).sum(0) / STEPS
    return (gradient * (image - blank)).sum(-1)


def _shares(places: np.ndarray) -> np.ndarray:
    """Each place's part of the whole; alike where none says anything."""
    total = float(places.sum())
    return places / total if total > 0 else np.full_like(places, 1 / places.size)
