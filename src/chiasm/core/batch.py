"""Samples as arrays and packed batches of tensors: Slot -> Encoded -> Batch.

The attention mask follows from three integers a token, so that one rule serves both routes:

    token t sees token u  iff  segment_ids[u] == segment_ids[t]
                          and  branch_ids[u] in (0, branch_ids[t])
                          and  block_ids[u] <= block_ids[t]

`segment_ids` is the sample within a pack (-1 is padding). `block_ids` is the cumulative sum of
PaliGemma's mask_ar: strictly rising is causal, constant over a span is bidirectional within it.
Branch 0 is the trunk; the others are alternatives that share it and never see each other:

    trunk 0   image image
    branch 1                what colour ? red
    branch 2                what shape  ? circle      positions resume from the trunk's end
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from chiasm.core import moved
from chiasm.core.device import moved_tensor, pinned

B = TypeVar("B")

IGNORE = -100
"""Target of a token that carries no loss."""


@dataclass(frozen=True)
class Slot:
    """What stands for one image in the token sequence.

    input_ids [n] int64: placeholders and the tokens around them (MLLM), or begin, code and end ids
    (unified).
    image_patches [P d] float32 or None: pixels for a continuous encoder.
    grid (rows, columns) of patches or codes; of each tile where the image is cut into `tiles`.
    place [V] int64: which of the ids each visual token of the tiles stands at, -1 for one that is
    left out. Several at one place are averaged; a placeholder without any is the end of a row.
    None: one a placeholder, in order.
    """

    input_ids: np.ndarray
    image_patches: np.ndarray | None
    grid: tuple[int, int]
    place: np.ndarray | None = None
    tiles: int = 1

    if not TYPE_CHECKING:  # attributes of earlier versions

        def __getattr__(self, name: str) -> Any:
            return moved.attribute(self, name)


@dataclass(frozen=True)
class Encoded:
    """One sample as arrays; every [T] array has one entry a token.

    input_ids, labels (already shifted; IGNORE where no loss), block_ids, branch_ids, position_ids:
    [T] int64. image_patches [P d] float32 or None; image_grids [N 2] int64, one row an image, or a
    tile of one, in order of appearance; place [V] int64 or None: as Slot's, indexes input_ids.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    block_ids: np.ndarray
    branch_ids: np.ndarray
    position_ids: np.ndarray
    image_patches: np.ndarray | None = None
    image_grids: np.ndarray | None = None
    name: str = ""
    place: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    if not TYPE_CHECKING:  # attributes of earlier versions

        def __getattr__(self, name: str) -> Any:
            return moved.attribute(self, name)


@dataclass(frozen=True)
class Packing:
    """Where the segments of packed rows lie and how they are masked, as the host knows it before
    the batch is moved to a device: attention kernels need these numbers, and reading them back from
    the device would make the host wait for it.

    shape: (B, T). first [N]: each segment's first token in the rows laid flat; lengths [N].
    causal [N] bool: blocks strictly rise and there are no branches. bidirectional [N] bool: one
    block, no branches. consecutive [N] bool: positions rise by one. reach [N]: the largest
    difference of positions in a segment; None where positions are not known.
    """

    shape: tuple[int, int]
    first: np.ndarray
    lengths: np.ndarray
    causal: np.ndarray
    bidirectional: np.ndarray
    consecutive: np.ndarray
    reach: np.ndarray | None = None

    @staticmethod
    def of(
        segment: np.ndarray,
        block: np.ndarray,
        branch: np.ndarray,
        position: np.ndarray | None = None,
    ) -> Packing:
        """Of [B T] columns as Batch's."""
        shape = segment.shape
        segment, block, branch = segment.ravel(), block.ravel(), branch.ravel()
        edge = np.ones(segment.size, bool)  # where a segment or padding begins
        edge[1:] = segment[1:] != segment[:-1]
        edge[:: shape[1]] = True
        start = np.flatnonzero(edge)
        real = segment[start] >= 0

        def never(bad: np.ndarray) -> np.ndarray:
            """[N] whether it holds of no token of the segment."""
            return ~np.logical_or.reduceat(bad, start)[real]

        def inside(column: np.ndarray) -> np.ndarray:
            """What a token's value is above that of the one before, 1 where a segment begins."""
            return np.where(edge, 1, np.diff(column, prepend=column[:1]))

        alone, rise = never(branch != 0), inside(block)
        steady, reach = np.zeros_like(alone), None
        if position is not None:
            position = position.ravel()
            steady = never(inside(position) != 1)
            low, high = np.minimum.reduceat(position, start), np.maximum.reduceat(position, start)
            reach = (high - low)[real]
        return Packing(
            (shape[0], shape[1]),
            start[real],
            np.diff(start, append=segment.size)[real],
            alone & never(rise <= 0),
            alone & never(~edge & (rise != 0)),
            steady,
            reach,
        )

    @staticmethod
    def bidirectional_row(lengths: Sequence[int]) -> Packing:
        """Of one row of segments end to end, in which all tokens see each other: the images of an
        encoder."""
        sizes = np.asarray(lengths, np.int64)
        all_of_them = np.ones(len(sizes), bool)
        first = np.cumsum(sizes) - sizes
        single = sizes == 1
        return Packing((1, int(sizes.sum())), first, sizes, single, all_of_them, single)


@dataclass(frozen=True)
class Batch:
    """Packed samples as tensors; the module's docstring has the mask that they say.

    input_ids, labels, segment_ids, block_ids, branch_ids, position_ids [B T] int64; image_patches
    [P d] and image_grids [N 2] run over the images (or their tiles) of all rows in reading order;
    names are the samples in it, for diagnoses; place [V]: as Slot's, an index into input_ids laid
    flat. per_sample: the loss is the
    mean within each example first, not over all tokens.

    On an accelerator `host` is the same batch in main memory: what decides shapes (how many tokens
    have a target, where images stand, the grids, which stay there) is read from it, as reading it
    from the device would wait for everything that the device still computes.
    """

    input_ids: Tensor
    labels: Tensor
    segment_ids: Tensor
    block_ids: Tensor
    branch_ids: Tensor
    position_ids: Tensor
    image_patches: Tensor | None = None
    image_grids: Tensor | None = None
    names: tuple[str, ...] = ()
    place: Tensor | None = None
    per_sample: bool = False
    host: Batch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; copies are begun and not waited for."""
        return _moved(self, device)

    def pin(self, device: torch.device) -> Batch:
        """The batch in memory that the device copies from beside its computing."""
        return _pinned(self, device)

    @property
    def on_host(self) -> Batch:
        """The batch in main memory."""
        return self if self.host is None else self.host

    @cached_property
    def supervised(self) -> Tensor:
        """[N] int64: which of the tokens laid flat have a target."""
        if self.host is None:
            return torch.nonzero(self.labels.flatten() != IGNORE)[:, 0]
        return moved_tensor(self.host.supervised, self.labels.device)

    @cached_property
    def packing(self) -> Packing | None:
        """Of the columns that make the mask; None where only the device has them."""
        host = self.on_host
        if host.segment_ids.device.type != "cpu":
            return None
        columns = (host.segment_ids, host.block_ids, host.branch_ids, host.position_ids)
        return Packing.of(*(column.numpy() for column in columns))

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.on_host.segment_ids >= 0).sum())

    @property
    def examples(self) -> Tensor:
        """[B T] int64: which example a token belongs to. The branches of a sample are examples of
        their own, as if each had been asked alone."""
        rows = torch.arange(len(self.segment_ids), device=self.segment_ids.device)[:, None]
        sample = rows * (self.segment_ids.max() + 2) + self.segment_ids + 1
        return sample * (self.branch_ids.max() + 1) + self.branch_ids

    @property
    def images(self) -> int:
        return 0 if self.image_grids is None else len(self.image_grids)

    if not TYPE_CHECKING:  # attributes of earlier versions

        def __getattr__(self, name: str) -> Any:
            return moved.attribute(self, name)


def pack(
    rows: Sequence[Sequence[Encoded]], length: int | None = None, per_sample: bool = False
) -> Batch:
    """Lay encoded samples end to end, one list a row; rows are padded on the right.

    length: pad every row to this many tokens (default: the longest row). per_sample: as in Batch.
    Raises ValueError when a
    row is longer.
    """
    if not rows or not any(rows):
        raise ValueError("pack: no samples to pack")
    longest = max(sum(len(e) for e in row) for row in rows)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"pack: a row holds {longest} tokens, more than the {length} allowed")
    shape = (len(rows), length)
    columns = {
        "input_ids": np.zeros(shape, np.int64),
        "labels": np.full(shape, IGNORE, np.int64),
        "segment_ids": np.full(shape, -1, np.int64),
        "block_ids": np.zeros(shape, np.int64),
        "branch_ids": np.zeros(shape, np.int64),
        "position_ids": np.zeros(shape, np.int64),
    }
    places = []
    for r, row in enumerate(rows):
        start = 0
        for s, sample in enumerate(row):
            span = slice(start, start + len(sample))
            columns["segment_ids"][r, span] = s
            for name in ("input_ids", "labels", "block_ids", "branch_ids", "position_ids"):
                columns[name][r, span] = getattr(sample, name)
            if sample.place is not None:
                places.append(shifted(sample.place, r * length + start))
            start += len(sample)
    samples = [sample for row in rows for sample in row]
    patches = [s.image_patches for s in samples if s.image_patches is not None]
    grids = [s.image_grids for s in samples if s.image_grids is not None and len(s.image_grids)]
    laid = {name: torch.from_numpy(column) for name, column in columns.items()}
    return Batch(
        **laid,  # type: ignore[arg-type]
        image_patches=torch.from_numpy(np.concatenate(patches)) if patches else None,
        image_grids=torch.from_numpy(np.concatenate(grids)) if grids else None,
        names=tuple(s.name for s in samples),
        place=torch.from_numpy(np.concatenate(places)) if places else None,
        per_sample=per_sample,
    )


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is no shorter."""
    return -(-length // multiple) * multiple


def shifted(place: np.ndarray, by: int) -> np.ndarray:
    """Places in what begins `by` ids later; -1 stays."""
    return np.where(place < 0, place, place + by)


@dataclass(frozen=True)
class ImageBatch:
    """Images for the autoencoder and the contrastive encoder.

    image_patches [P d] float32 in [-1, 1] with image_grids [N 2]; texts [M L] int64 and lengths [M]
    are the distinct captions, match [N M] bool says which of them describe which image.
    """

    image_patches: Tensor
    image_grids: Tensor
    texts: Tensor | None = None
    lengths: Tensor | None = None
    match: Tensor | None = None
    names: tuple[str, ...] = ()
    host: ImageBatch | None = None

    def to(self, device: torch.device | str) -> ImageBatch:
        """As Batch's."""
        return _moved(self, device)

    def pin(self, device: torch.device) -> ImageBatch:
        """As Batch's."""
        return _pinned(self, device)

    @property
    def on_host(self) -> ImageBatch:
        """As Batch's."""
        return self if self.host is None else self.host

    @property
    def tokens(self) -> int:
        return len(self.image_patches)

    @property
    def images(self) -> int:
        return len(self.image_grids)

    if not TYPE_CHECKING:  # attributes of earlier versions

        def __getattr__(self, name: str) -> Any:
            return moved.attribute(self, name)


ON_HOST = ("image_grids",)
"""Tensors of batches that say shapes and nothing else: they never leave main memory."""


def _tensors(batch: Any) -> dict[str, Tensor]:
    found = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in ON_HOST}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _moved(batch: B, device: torch.device | str) -> B:
    own: Any = batch
    tensors, device = _tensors(own), torch.device(device)
    if all(tensor.device == device for tensor in tensors.values()):
        return batch
    if device.type == "cpu" and own.host is not None:
        return own.host
    moved = {name: moved_tensor(tensor, device) for name, tensor in tensors.items()}
    return replace(own, **moved, host=None if device.type == "cpu" else own.on_host)


def _pinned(batch: B, device: torch.device) -> B:
    own: Any = batch
    return replace(own, **{name: pinned(t, device) for name, t in _tensors(own).items()})


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
