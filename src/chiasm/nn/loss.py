"""Losses as sums: what they are divided by is decided once, over the whole step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from chiasm.core.batch import Batch, round_up
from chiasm.core.device import moved_tensor

PIECE = 2**19
"""Numbers that pass through a processor's caches together."""


class TokenLoss(NamedTuple):
    """Per-token cross entropy [N] (nats) and the squared log-normaliser [N]."""

    nll: Tensor
    log_z_squared: Tensor


def token_loss(logits: Tensor, targets: Tensor) -> TokenLoss:
    """Cross entropy of logits [N V] at targets [N], and logZ² for the z-loss
    (PaLM, 2204.02311, section 5: + 1e-4·log²Z; Chameleon uses 1e-5)."""
    nll, log_z = _TokenLoss.apply(logits, targets)  # type: ignore[misc]
    return TokenLoss(nll, log_z.square())


EVEN = 64
"""Many tokens with a target are filled up to a multiple of this many: kernels for bfloat16 on a CPU
are made anew for every shape (LOG.md)."""


def supervised_loss(
    hidden: Tensor, batch: Batch, head: Callable[[Tensor], Tensor]
) -> tuple[TokenLoss, Tensor]:
    """token_loss of those of the hidden states [B T D] whose tokens of the batch have a target, and
    their targets [N]; head: hidden states -> logits, for theirs only."""
    place = batch.supervised
    count = len(place)
    if count > 4 * EVEN:
        place = F.pad(place, (0, round_up(count, EVEN) - count))
    wanted = batch.labels.flatten()[place].clamp_(min=0)
    nll, z = token_loss(head(hidden.flatten(0, 1).index_select(0, place)), wanted)
    return TokenLoss(nll[:count], z[:count]), wanted[:count]


class _TokenLoss(torch.autograd.Function):
    """Cross entropy [N] and log-normaliser [N], in fp32 at least, of logits [N V].

    Logits are the largest tensor of a step, and on a CPU every passage of theirs through memory
    counts (LOG.md). So the work is done on a few rows at a time, which stay in the caches, and
    beside the logits only their gradient is ever whole, in the logits' own precision.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll, log_z = [], []
        for rows, wanted in zip(_pieces(logits), _pieces(targets[:, None], logits), strict=True):
            rows = _finer(rows)
            own = rows.log_softmax(-1).gather(1, wanted)
            nll.append(-own[:, 0])
            log_z.append((rows.gather(1, wanted) - own)[:, 0])
        whole = torch.cat(log_z)
        ctx.save_for_backward(logits, targets, whole)
        return torch.cat(nll), whole

    @staticmethod
    @once_differentiable
    def backward(ctx, *given: Tensor):
        """d nll/dx = softmax(x) - onehot(target), d logZ/dx = softmax(x)."""
        logits, targets, log_z = ctx.saved_tensors
        gradient, of_nll = torch.empty_like(logits), given[0][:, None]
        of_both, log_z = of_nll + given[1][:, None], log_z[:, None]
        columns = (_pieces(x, logits) for x in (gradient, targets[:, None], log_z, of_nll, of_both))
        for rows, out, wanted, z, pull, push in zip(_pieces(logits), *columns, strict=True):
            share = (_finer(rows) - z).exp_().mul_(push)
            out.copy_(share.scatter_add_(1, wanted, -pull))
        return gradient, None


def _finer(x: Tensor) -> Tensor:
    """In fp32, or as it is if that is finer."""
    return x if x.dtype == torch.float64 else x.float()


def _pieces(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Rows of x [N ...] in pieces of as many as make PIECE numbers of logits `like` [N V], by
    default x."""
    like = x if like is None else like
    most = PIECE if like.device.type == "cpu" else 2**28
    return x.split(max(1, most // like.shape[1]))


def summed(values: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """The loss of tokens as a sum and the count that divides it: values [N] of the batch's tokens
    that have a target.

    Tokens weigh alike, or with batch.per_sample examples do: then it is the sum of the means within
    them (PaliGemma's, 2407.07726: long answers weigh no more than short ones), and adds up exactly
    over micro-batches and ranks, as an example is never divided between them.
    """
    if not batch.per_sample:
        return values.sum(), len(values)
    host = batch.on_host
    examples = host.examples.flatten()[host.supervised]
    _, example, size = examples.unique(return_inverse=True, return_counts=True)
    return (values / moved_tensor(size[example], values.device)).sum(), len(size)


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
