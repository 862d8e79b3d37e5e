"""Streams of images, captioned for the contrastive encoder, bare for the autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer

from chiasm.core import moved
from chiasm.core.batch import ImageBatch
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.augment import augment, mirrorable
from chiasm.data.caption import caption_of
from chiasm.data.quarantine import Quarantine
from chiasm.data.reader import Reader
from chiasm.data.turns import Mixed, Turns
from chiasm.vision.patches import fit, native, patchify, to_array

SMALL, MOST_DECODED = 128 * 128, 10_000  # pixels worth keeping decoded; so many images: 0.5 GB


@dataclass(frozen=True)
class ImageProcessor:
    """Images to patches and captions to ids, for training and for use alike.

    image_size, patch_size, max_patches, resample: as vision.patches.fit. tokenizer None: images
    only. context: longest caption in tokens.
    """

    image_size: int
    patch_size: int
    max_patches: int | None = None
    tokenizer: Tokenizer | None = None
    context: int = 16
    resample: int = 3

    def __post_init__(self) -> None:
        if self.tokenizer is not None:  # words of a caption are words, as in a conversation
            self.tokenizer.encode_special_tokens = True

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height in pixels that an image (width, height) is resized to."""
        if self.max_patches is None:
            return self.image_size, self.image_size
        return native(size, self.image_size, self.patch_size, self.max_patches)

    def patches(self, image: PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """(patches [P, 3·p·p] float32 in [-1, 1], grid)."""
        size = self.patch_size
        resized = fit(image, self.image_size, size, self.max_patches, self.resample)
        pixels = to_array(resized)
        return patchify(pixels, size), (pixels.shape[0] // size, pixels.shape[1] // size)

    def images(self, images: Sequence[PIL.Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """(patches [P d], grids [N 2]) of several images."""
        pairs = [self.patches(image) for image in images]
        patches = np.concatenate([patches for patches, _ in pairs])
        return torch.from_numpy(patches), torch.tensor([grid for _, grid in pairs])

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids [M L] padded with 0, lengths [M]), cut at `context` tokens."""
        assert self.tokenizer is not None
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        cut = [e.ids[: self.context] or [0] for e in encoded]
        longest = max(map(len, cut))
        rows = [ids + [0] * (longest - len(ids)) for ids in cut]
        return torch.tensor(rows), torch.tensor([len(ids) for ids in cut])


class ImageStream:
    """Endless batches of `count` images in the order of data.turns, where each counts as a token.

    A processor with a tokenizer adds the captions; samples without one are left out, or with
    `uncaptioned` kept, matching no text. shift and mirror: as data.augment. An image that cannot
    be read goes to the quarantine and the next one takes its turn. threads: that read ahead.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: ImageProcessor,
        count: int,
        seed: int,
        shift: int = 0,
        mirror: bool = False,
        quarantine: Quarantine | None = None,
        uncaptioned: bool = False,
        threads: int = 0,
    ):
        captioned = processor.tokenizer is not None and not uncaptioned
        self.samples = Mixed.of(samples).keep(
            lambda s: s.images and (caption_of(s) or not captioned)
        )
        if not self.samples:
            raise DataError("no sample has an image" + (" with a caption" if captioned else ""))
        self.processor, self.count, self.shift, self.mirror = processor, count, shift, mirror
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.turns = Turns(self.samples, 1, seed)
        self.reader = Reader(self.samples, self.turns, threads)
        self._decoded: dict[int, PIL.Image.Image] = {}

    def split(self, data_shard: int, count: int) -> None:
        """As core.protocols.Stream; the counters count the data shard's own places."""
        self.turns.split(data_shard, count)

    def state_dict(self) -> dict:
        return self.turns.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.turns.load_state_dict(state)
        self.reader.forget()

    def __iter__(self) -> Iterator[ImageBatch]:
        while True:
            yield self._next()

    def _next(self) -> ImageBatch:
        patches, grids, captions, names = [], [], [], []
        failed = 0
        while len(grids) < self.count:
            turn = self.turns.next()
            sample = Sample((), f"sample {turn.index}")  # until it has been read
            try:
                sample = self.reader.next(turn)
                image = self._decoded.get(turn.index) or sample.images[0].load()
            except DataError as error:
                self.quarantine.add(sample, error, len(self.samples))
                self.turns.skip(turn)
                failed += 1
                if failed > 2 * len(self.samples):  # the quarantine counts one id only once
                    raise DataError(f"no image can be read; the last: {error}") from None
                continue
            failed = 0
            self.turns.use(turn)
            if image.width * image.height <= SMALL and len(self._decoded) < MOST_DECODED:
                self._decoded[turn.index] = image
            caption = caption_of(sample) or ""
            mirror = self.mirror and (self.processor.tokenizer is None or mirrorable([caption]))
            moved = augment(image, turn.randomness(), self.shift, mirror)
            pixels, grid = self.processor.patches(moved)
            patches.append(pixels)
            grids.append(grid)
            captions.append(caption)
            names.append(sample.id)
        texts = _texts(captions, self.processor) if self.processor.tokenizer else (None, None, None)
        return ImageBatch(
            torch.from_numpy(np.concatenate(patches)), torch.tensor(grids), *texts, tuple(names)
        )


def _texts(captions: list[str], processor: ImageProcessor):
    distinct = list(dict.fromkeys(filter(None, captions))) or [""]
    texts, lengths = processor.texts(distinct)
    column = torch.tensor([distinct.index(text) if text else -1 for text in captions])
    match = column[:, None] == torch.arange(len(distinct))
    return texts, lengths, match


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
