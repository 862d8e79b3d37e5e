"""chiasm precompute: what images become in a frozen part of a model, once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Sample
from chiasm.core.vocab import Vocabulary
from chiasm.data.images import ImageProcessor
from chiasm.data.load import load_samples
from chiasm.data.processor import Processor
from chiasm.data.shards import Work, fingerprint
from chiasm.data.tokens import Codes
from chiasm.hub.load import load
from chiasm.mllm.model import MLLM
from chiasm.nn.precision import LoweredWeights, Precision, autocast, working_dtype
from chiasm.train.feature_cache import encoder_hash, image_hash, write_part
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.vision.contrastive import DualEncoder

BATCH = 16  # images that an encoder sees at a time


@dataclass(frozen=True)
class PrecomputePlan:
    """part: folder of a trained image tokenizer (codes), or of an encoder or an MLLM (features).
    size: samples a shard. precision: as a stage's autocast, of features."""

    part: Path
    data: str
    size: int
    precision: Precision = "auto"

    @property
    def threads(self) -> bool:
        return False  # the model computes with threads of its own

    def work(self) -> Work:
        model, processor = load(str(self.part))
        # What cannot be read at all is in no shard; training counts and lists it.
        samples = load_samples(self.data, "train", lambda where, error: None)
        if isinstance(model, Autoencoder):
            # Codes do not depend on the text that they will share a vocabulary with.
            words = Vocabulary(5, model.quantizer.codes, 0, 1, 2, 3, 4)
            return Codes(samples, UnifiedCodec(model, words), self.size, self.data)
        if isinstance(model, (DualEncoder, MLLM)):
            return Features(model.vision, processor, samples, self)
        raise ConfigError(f"{self.part}: holds no image tokenizer, encoder or MLLM; "
                          "give the folder of one")  # fmt: skip


class Features:
    """The work (data/shards.py) of encoding images for train.feature_cache: the folder is what
    CHIASM_CACHE names."""

    def __init__(
        self,
        encoder: nn.Module,
        processor: Processor | ImageProcessor,
        samples: Sequence[Sample],
        plan: PrecomputePlan,
    ):
        self.encoder, self.processor, self.samples, self.plan = encoder, processor, samples, plan
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        # Encoders are lowered in training as well, and are then others (weights_hash).
        dtype = working_dtype(plan.precision, model_device(encoder))
        self.lowered = LoweredWeights(encoder, dtype)
        self.key = encoder_hash(encoder)
        self.fingerprint = fingerprint("features", self.key, plan.data, len(samples), plan.size)
        self.count = -(-len(samples) // plan.size)

    def name(self, number: int) -> str:
        return f"shard-{number:05d}"

    @torch.no_grad()
    def write(self, number: int, folder: Path) -> dict[str, Any]:
        size = self.plan.size
        chosen = self.samples[number * size : (number + 1) * size]
        unusable: dict[str, str] = {}
        views: dict[bytes, tuple[Tensor, list[int]]] = {}
        seen: set[bytes] = set()
        place = folder / "features" / self.key
        place.mkdir(parents=True)

        def features() -> Iterator[tuple[bytes, Tensor]]:
            for sample in chosen:
                for image in sample.images:
                    try:
                        views.update(self._views(image))
                    except DataError as error:
                        unusable[image.where or str(error)] = str(error)
                    if len(views) >= BATCH:
                        yield from self._encode(views, seen)
            yield from self._encode(views, seen)

        write_part(place / self.name(number), features())
        return {"images": len(seen), "unusable": unusable}

    def finish(self, out: Path, manifests: Sequence[dict[str, Any]]) -> None:
        """Nothing to add: training finds the features by their encoder's hash."""

    def _views(self, image: Image) -> Iterator[tuple[bytes, tuple[Tensor, list[int]]]]:
        """The patches [P d] and grid of every tile that the model would see of an image."""
        for patches, grid in self._patches(image.load()):
            tensor = torch.from_numpy(patches)
            yield image_hash(tensor, list(grid)), (tensor, list(grid))

    def _patches(self, image: PIL.Image.Image) -> Iterator[tuple[Any, tuple[int, int]]]:
        if isinstance(self.processor, ImageProcessor):
            yield self.processor.patches(image)
            return
        slot = self.processor.codec.encode([image])[0]
        assert slot.image_patches is not None
        each = len(slot.image_patches) // slot.tiles
        for i in range(slot.tiles):
            rows, columns = slot.grid
            yield slot.image_patches[i * each : (i + 1) * each], (int(rows), int(columns))

    def _encode(
        self, views: dict[bytes, tuple[Tensor, list[int]]], seen: set[bytes]
    ) -> Iterator[tuple[bytes, Tensor]]:
        """Features of the views that no earlier batch had; forgets the views."""
        fresh = {name: view for name, view in views.items() if name not in seen}
        views.clear()
        if not fresh:
            return
        seen.update(fresh)
        patches = torch.cat([patches for patches, _ in fresh.values()]).to(
            model_device(self.encoder)
        )
        grids = torch.tensor([grid for _, grid in fresh.values()])
        with autocast(self.plan.precision, patches.device):
            encoded = self.encoder(patches, grids)
        yield from zip(fresh, encoded.split(grids.prod(1).tolist()), strict=True)
