"""Streams of pictures, captioned for the contrastive encoder, bare for the autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer

from chiasm.core.batch import PictureBatch
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.caption import caption_of
from chiasm.data.order import index_at, place_of, randomness_at
from chiasm.data.quarantine import Quarantine
from chiasm.vision.patches import fit, patchify, to_array


@dataclass(frozen=True)
class PictureProcessor:
    """Pictures to patches and captions to ids, for training and for use alike.

    image_size, patch_size, max_patches, resample: as vision.patches.fit. tokenizer None: pictures
    only. context: longest caption in tokens.
    """

    image_size: int
    patch_size: int
    max_patches: int | None = None
    tokenizer: Tokenizer | None = None
    context: int = 16
    resample: int = 3

    def patches(self, picture: PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """(patches [P, 3·p·p] float32 in [-1, 1], grid)."""
        size = self.patch_size
        resized = fit(picture, self.image_size, size, self.max_patches, self.resample)
        pixels = to_array(resized)
        return patchify(pixels, size), (pixels.shape[0] // size, pixels.shape[1] // size)

    def pictures(self, pictures: Sequence[PIL.Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """(patches [P d], grids [N 2]) of several pictures."""
        pairs = [self.patches(picture) for picture in pictures]
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


class PictureStream:
    """Endless batches of `count` pictures in an order that depends on (seed, cursor) alone.

    A processor with a tokenizer adds the captions; samples without one are left out, or with
    `uncaptioned` kept, matching no text. shift and
    mirror augment (pixels of random translation filled from the edge, mirroring half of the time).
    A picture that cannot be read goes to the quarantine and the next one takes its turn.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: PictureProcessor,
        count: int,
        seed: int,
        shift: int = 0,
        mirror: bool = False,
        quarantine: Quarantine | None = None,
        uncaptioned: bool = False,
    ):
        captioned = processor.tokenizer is not None and not uncaptioned
        samples = [s for s in samples if s.images and (caption_of(s) or not captioned)]
        if not samples:
            raise DataError("no sample has a picture" + (" with a caption" if captioned else ""))
        self.samples, self.processor, self.count, self.seed = samples, processor, count, seed
        self.shift, self.mirror = shift, mirror
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self.cursor = 0
        self._strand = (0, 1)
        self._decoded: dict[int, PIL.Image.Image] = {}

    def split(self, strand: int, count: int) -> None:
        """As core.protocols.Stream; the cursor counts the strand's own places."""
        self._strand = (strand, count)

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]

    def __iter__(self) -> Iterator[PictureBatch]:
        while True:
            yield self._next()

    def _next(self) -> PictureBatch:
        patches, grids, captions, names = [], [], [], []
        failed = 0
        while len(grids) < self.count:
            place = place_of(self.cursor, *self._strand)
            index = index_at(place, len(self.samples), self.seed)
            random = randomness_at(place, self.seed)
            self.cursor += 1
            sample = self.samples[index]
            try:
                picture = self._decoded.get(index) or sample.images[0].load()
            except DataError as error:
                self.quarantine.add(sample, error, len(self.samples))
                failed += 1
                if failed > 2 * len(self.samples):  # the quarantine counts one id only once
                    raise DataError(f"no picture can be read; the last: {error}") from None
                continue
            failed = 0
            if picture.width * picture.height <= 128 * 128:  # small ones are worth keeping decoded
                self._decoded[index] = picture
            pixels, grid = self.processor.patches(augment(picture, random, self.shift, self.mirror))
            patches.append(pixels)
            grids.append(grid)
            captions.append(caption_of(sample) or "")
            names.append(sample.id)
        texts = _texts(captions, self.processor) if self.processor.tokenizer else (None, None, None)
        return PictureBatch(
            torch.from_numpy(np.concatenate(patches)), torch.tensor(grids), *texts, tuple(names)
        )


def augment(
    picture: PIL.Image.Image, random: np.random.Generator, shift: int, mirror: bool
) -> PIL.Image.Image:
    """Move by up to `shift` pixels each way, filling from the edge; mirror half of the time."""
    if mirror and random.random() < 0.5:
        picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if shift:
        pixels = np.asarray(picture)
        down, right = random.integers(-shift, shift + 1, 2)
        rows = np.clip(np.arange(pixels.shape[0]) - down, 0, pixels.shape[0] - 1)
        columns = np.clip(np.arange(pixels.shape[1]) - right, 0, pixels.shape[1] - 1)
        picture = PIL.Image.fromarray(pixels[rows][:, columns])
    return picture


def _texts(captions: list[str], processor: PictureProcessor):
    distinct = list(dict.fromkeys(filter(None, captions))) or [""]
    texts, lengths = processor.texts(distinct)
    column = torch.tensor([distinct.index(text) if text else -1 for text in captions])
    match = column[:, None] == torch.arange(len(distinct))
    return texts, lengths, match
