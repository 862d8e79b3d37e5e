"""Lookup-free quantisation (MAGVIT-v2, 2310.05737, section 3.1): each channel is one bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.unified.config import LFQConfig
from chiasm.unified.quantizers.base import Quantized, Quantizer


class LFQ(Quantizer):
    """The sign of every channel; a code is the number with those bits, the first the lowest.

    The penalty is the paper's equation 5, entropy · (E[H(p(c|z))] - diversity · H(E[p(c|z)])) with
    p(c|z) = softmax over the codes c of 2 · sharpness · z·c, plus the commitment to the signs. Bits
    are independent given z, so the first entropy is a sum over bits. The second would need a
    distribution over all codes: it is taken over groups of at most `group` bits, which is exact
    for a codebook of one group and an upper bound above (Open-MAGVIT2, 2409.04410, section 3.2).
    """

    basis: Tensor

    def __init__(self, config: LFQConfig):
        super().__init__()
        self.codes, self.width, self.config = config.codes, config.bits, config
        self.register_buffer("basis", 2 ** torch.arange(config.bits), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        points = z.movedim(1, -1)
        signs = torch.where(points > 0, 1.0, -1.0).to(points.dtype)
        codes = ((points > 0) * self.basis).sum(-1)
        penalty = z.new_zeros(())
        if self.training:
            flat = points.reshape(-1, self.width)
            penalty = self.config.commitment * F.mse_loss(points, signs)
            penalty = penalty + self.config.entropy * self._entropies(flat)
        values = points + (signs - points).detach()
        return Quantized(values.movedim(-1, 1), codes, penalty)

    def lookup(self, codes: Tensor) -> Tensor:
        return (codes[..., None] // self.basis % 2).float() * 2 - 1

    def features(self) -> Tensor:
        """The bits, as 1/2 or -1/2."""
        return self.lookup(torch.arange(self.codes, device=self.basis.device)) / 2

    def _entropies(self, flat: Tensor) -> Tensor:
        """Mean entropy of a point's code less the weighted entropy of the mean (nats)."""
        logits = 4 * self.config.sharpness * flat.float()  # of bit 1 against bit 0
        own = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
        overall = flat.new_zeros((), dtype=torch.float)
        for bits in logits.split(self.config.group, dim=1):
            p = _joint(bits.sigmoid()).mean(0)
            overall = overall - torch.special.xlogy(p, p.clamp(min=1e-30)).sum()
        return own - self.config.diversity * overall


def _joint(one: Tensor) -> Tensor:
    """Probabilities [N bits] that each bit is 1 -> of all numbers [N 2^bits]."""
    joint = torch.ones_like(one[:, :1])
    for p in one.unbind(1):
        # The later a bit, the higher: it is the slower index.
        joint = torch.cat([joint * (1 - p[:, None]), joint * p[:, None]], 1)
    return joint
