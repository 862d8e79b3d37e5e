"""Codes that say what an image shows: a small head reads the caption's words from them.

The squared error alone leaves it open how codes stand for things, and a transformer then has to
find out from thousands of images which of them make a circle. An encoder whose codes must also
let the words be read marks them where the thing is (UniTok, 2502.20321, and VILA-U, 2409.04429,
train their tokenizers with a contrastive loss to the same end). The head is used in training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CaptionReader(nn.Module):
    """values [N C h w] of codes -> logits [N words]: each code is read by itself, and what any of
    them says counts."""

    def __init__(self, width: int, words: int, hidden: int = 128):
        super().__init__()
        self.each = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, hidden, 1)
        )
        self.words = nn.Linear(hidden, words)

    def forward(self, values: Tensor) -> Tensor:
        return self.words(self.each(values).amax((2, 3)))

    def loss(self, values: Tensor, texts: Tensor, lengths: Tensor, match: Tensor) -> Tensor:
        """Cross entropy [N] against the evenly shared distinct words of each image's caption, 0
        where it has none. texts [M L] with lengths [M], match [N M] as in core.batch."""
        logits = self(values).float()
        inside = torch.arange(texts.shape[1], device=texts.device) < lengths[:, None]
        occurs = torch.zeros(len(texts), logits.shape[1], device=texts.device)
        occurs = occurs.scatter_reduce(1, texts, inside.float(), "amax")
        own = match.float() @ occurs
        shares = own / own.sum(1, keepdim=True).clamp(min=1)
        return -(shares * F.log_softmax(logits, 1)).sum(1)
