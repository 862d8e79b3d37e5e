"""Where a token stands in its image, and which tokens of it see each other.

position        0   1     2 3 4 5   6     7        text, begin, four codes, end, text
2-D RoPE row    0   1     2 2 3 3   6     7        counted from the image's first position
     column     0   1     2 3 2 3   6     7
block, causal   0   1     2 3 4 5   6     7
bidirectional   0   1     2 2 2 2   6     7        of an image that is given, not drawn; of every
                                                   image with masked diffusion
"""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.core.batch import Batch
from chiasm.core.vocab import Vocabulary
from chiasm.nn.attention import AttentionPlan, TokenIndex, visible
from chiasm.nn.cache import KVCache


def image_runs(batch: Batch, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Which tokens [B T] are codes of an image, and where in the row the first of its codes is
    (anything where there is none)."""
    code = vocabulary.in_image(batch.input_ids)
    joined = torch.zeros_like(code)
    joined[:, 1:] = code[:, 1:] & code[:, :-1] & (batch.position_ids.diff(dim=1) == 1)
    joined[:, 1:] &= (batch.branch_ids.diff(dim=1) == 0) & (batch.segment_ids.diff(dim=1) == 0)
    here = torch.arange(code.shape[1], device=code.device).expand_as(code)
    return code, torch.where(code & ~joined, here, 0).cummax(1).values


def images_whole(batch: Batch, vocabulary: Vocabulary) -> Tensor:
    """block [B T] in which the codes of every image see each other."""
    code, first = image_runs(batch, vocabulary)
    return torch.where(code, batch.block_ids.gather(1, first), batch.block_ids)


def given_images_whole(batch: Batch, vocabulary: Vocabulary) -> Tensor:
    """block [B T] in which the codes of an image see each other (PaliGemma's prefix attention,
    2407.07726, section 3.2, for images alone). An image with targets among its codes is being
    drawn: it stays causal, as its codes would otherwise see what they are to predict."""
    code, first = image_runs(batch, vocabulary)
    predicts = (code & vocabulary.is_code(batch.labels)).long()
    drawn = torch.zeros_like(first).scatter_reduce(1, first, predicts, "amax").gather(1, first)
    return torch.where(code & (drawn == 0), batch.block_ids.gather(1, first), batch.block_ids)


def grid_positions(batch: Batch, vocabulary: Vocabulary, columns: int) -> tuple[Tensor, Tensor]:
    """(row, column) [B T] for two-dimensional rotation; a code counts from the last token before
    it that is none. Rows hold whole images."""
    code = vocabulary.in_image(batch.input_ids)
    here = torch.arange(code.shape[1], device=code.device).expand_as(code)
    before = torch.where(code, 0, here).cummax(1).values
    return _place(batch.position_ids, batch.position_ids.gather(1, before), code, columns)


def extend_grid(
    cache: KVCache, batch: Batch, index: TokenIndex, vocabulary: Vocabulary, columns: int
) -> tuple[AttentionPlan, tuple[Tensor, Tensor]]:
    """The cache's `extend`, and the new tokens' (row, column). It is kept where what is no code
    stands (-1 for codes), so that images under way know where they began."""
    code = vocabulary.in_image(batch.input_ids)
    layout = cache.extend(index, None, others=torch.where(code, -1, batch.position_ids))
    others = cache.further["others"]
    assert cache.index is not None
    known = cache.index.map(lambda column: column[:, : len(cache)])
    # With its block a code of a whole image would see later ones, but those are codes too.
    seen = visible(index, known) & (others[:, None] < batch.position_ids[..., None])
    before = torch.where(seen, others[:, None], -1).amax(-1)
    return layout, _place(batch.position_ids, before, code, columns)


def _place(position: Tensor, before: Tensor, code: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    offset = position - before - 1
    row, column = (before + 1 + x for x in (offset // columns, offset % columns))
    return torch.where(code, row, position), torch.where(code, column, position)
