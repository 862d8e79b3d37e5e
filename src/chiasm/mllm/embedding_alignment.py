"""Visual tokens that begin where the language model's own words are.

Trained through the language model, a projector takes thousands of images to find out what the
model can read, each at the price of a pass through it. Here it is told directly: the visual tokens
of an image, in order, are drawn to the embeddings of its caption's words. It costs no pass through
the language model, which then reads the image nearly as it reads the caption (LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 20.0


def word_shares(captions: Sequence[Tensor], slots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which words each visual token should stand for.

    captions: word ids [L] an image (L > 0), slots: its number n of visual tokens -> the distinct
    words [W] and shares [sum of slots, W], rows summing to 1. Slot i of n stands for the words from
    iL/n to (i + 1)L/n: one word, or the mean of several where the caption is longer.
    """
    words, place = torch.unique(torch.cat(list(captions)), return_inverse=True)
    rows = []
    for columns, n in zip(place.split([len(c) for c in captions]), slots, strict=True):
        for i in range(n):
            first = i * len(columns) // n
            chosen = columns[first : max(first + 1, (i + 1) * len(columns) // n)]
            rows.append(torch.bincount(chosen, minlength=len(words)) / len(chosen))
    return words, torch.stack(rows)


def alignment_loss(tokens: Tensor, embeddings: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """tokens [T D], embeddings of the words [W D], shares [T W] -> two losses [T].

    The cross entropy of the shares against a softmax over cosine similarities (which word), and the
    squared distance to the shares' mean embedding over the embeddings' mean square (how large).
    """
    logits = TEMPERATURE * F.normalize(tokens, dim=-1) @ F.normalize(embeddings, dim=-1).T
    which = -(shares * logits.log_softmax(-1)).sum(-1)
    distance = (tokens - shares @ embeddings).square().mean(-1)
    return which, distance / embeddings.square().mean()
