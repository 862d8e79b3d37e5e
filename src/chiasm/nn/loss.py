"""Losses as sums: what they are divided by is decided once, over the whole step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core.batch import Batch


class TokenLoss(NamedTuple):
    """Per-token cross entropy [N] (nats) and the squared log-normaliser [N]."""

    nll: Tensor
    log_z_squared: Tensor


def token_loss(logits: Tensor, targets: Tensor) -> TokenLoss:
    """Cross entropy of logits [N V] at targets [N], and logZ² for the z-loss
    (PaLM, 2204.02311, section 5: + 1e-4·log²Z; Chameleon uses 1e-5)."""
    log_z = torch.logsumexp(logits.float(), dim=-1)
    chosen = logits.gather(1, targets[:, None])[:, 0].float()
    return TokenLoss(log_z - chosen, log_z.square())


def summed(values: Tensor, batch: Batch, wanted: Tensor) -> tuple[Tensor, int]:
    """The loss of tokens as a sum and the count that divides it: values [N] of the tokens of the
    batch that are wanted [B T].

    Tokens weigh alike, or with batch.per_sample examples do: then it is the sum of the means within
    them (PaliGemma's, 2407.07726: long answers weigh no more than short ones), and adds up exactly
    over micro-batches and ranks, as an example is never divided between them.
    """
    if not batch.per_sample:
        return values.sum(), len(values)
    _, example, size = batch.examples[wanted].unique(return_inverse=True, return_counts=True)
    return (values / size[example]).sum(), len(size)


def sigmoid_contrastive(
    image: Tensor, text: Tensor, match: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """SigLIP's loss summed over images (2303.15343, section 3.2).

    image [N D] and text [M D] are unit vectors, match [N M] bool says which texts describe which
    images, scale is exp(t') and bias b. -sum log sigmoid(±(scale·cos + bias)).
    """
    logits = scale * image @ text.T + bias
    sign = torch.where(match, 1.0, -1.0)
    return -F.logsigmoid(sign * logits).sum()


def softmax_contrastive(image: Tensor, text: Tensor, match: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss summed over images (2103.00020, figure 3); several matching texts
    share the target evenly, and the text side is rescaled to count as many rows as the images."""
    logits = scale * image @ text.T
    target = match.float()
    rows = -(F.log_softmax(logits, 1) * target / target.sum(1, keepdim=True)).sum()
    columns = target / target.sum(0, keepdim=True).clamp(min=1)
    down = -(F.log_softmax(logits, 0) * columns).sum() * (len(image) / len(text))
    return (rows + down) / 2
