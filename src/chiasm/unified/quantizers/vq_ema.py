"""Vector quantisation with a moving-average codebook (VQ-VAE, 1711.00937, appendix A.1) and
replacement of dead codes (Jukebox, 2005.00341, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.unified.config import ResidualVQConfig, VQConfig
from chiasm.unified.quantizers.base import Quantized, Quantizer, code_counts


class VQEMA(Quantizer):
    """The nearest codebook vector by Euclidean distance; the codebook follows the encoder.

    Buffers: embedding [codes width]; cluster_size [codes] and cluster_sum [codes width] are the
    moving averages; idle [codes] counts training batches since a code was last chosen. The first
    training batch initialises the codebook from encoder outputs.
    """

    embedding: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    idle: Tensor
    started: Tensor

    def __init__(self, config: VQConfig | ResidualVQConfig):
        super().__init__()
        self.codes, self.width, self.config = config.codes, config.width, config
        self.register_buffer("embedding", torch.randn(config.codes, config.width))
        self.register_buffer("cluster_size", torch.ones(config.codes))
        self.register_buffer("cluster_sum", self.embedding.clone())
        self.register_buffer("idle", torch.zeros(config.codes, dtype=torch.long))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor) -> Quantized:
        points = z.movedim(1, -1).float()
        flat = points.reshape(-1, self.width)
        fresh = self._begin(flat.detach()) if self.training else None
        codes = self.nearest(flat).view(points.shape[:-1])
        values = self.lookup(codes)
        penalty = self.config.commitment * F.mse_loss(points, values)
        if fresh is not None:
            self._follow(flat.detach(), codes.reshape(-1), fresh)
        values = points + (values - points).detach()
        return Quantized(values.movedim(-1, 1), codes, penalty)

    def nearest(self, flat: Tensor) -> Tensor:
        """[N width] float32 -> codes [N] of the nearest codebook vectors. Never in bfloat16, in
        which neighbouring vectors are as far as each other."""
        with torch.autocast(flat.device.type, enabled=False):
            distance = (
                flat.square().sum(1, keepdim=True)
                + self.embedding.square().sum(1)
                - 2 * flat @ self.embedding.T
            )
        return distance.argmin(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.embedding[codes]

    def flops(self, places: int) -> float:
        """Every place against every vector, once a code; nothing is passed back through it."""
        return 2.0 * places * self.depth * self.codes * self.width

    def features(self) -> Tensor:
        """The codebook, normalised a channel."""
        centred = self.embedding - self.embedding.mean(0)
        return centred / centred.std(0).clamp(min=1e-6)

    @torch.no_grad()
    def _begin(self, flat: Tensor) -> Tensor:
        """Encoder outputs that may become codes [codes width]; the first batch's do. Chosen in
        every batch: whether any is needed is known on the device alone, and asking would wait."""
        chosen = torch.randint(len(flat), (self.codes,), device=flat.device)
        fresh = flat[chosen] + 1e-3 * torch.randn(self.codes, flat.shape[1], device=flat.device)
        self.embedding.copy_(torch.where(self.started, self.embedding, fresh))
        self.cluster_sum.copy_(torch.where(self.started, self.cluster_sum, fresh))
        self.started.fill_(True)
        return fresh

    @torch.no_grad()
    def _follow(self, flat: Tensor, codes: Tensor, fresh: Tensor) -> None:
        keep = self.config.decay
        count = code_counts(codes, self.codes).to(flat.dtype)
        total = torch.zeros_like(self.embedding).index_add_(0, codes, flat)
        self.cluster_size.mul_(keep).add_(count, alpha=1 - keep)
        self.cluster_sum.mul_(keep).add_(total, alpha=1 - keep)
        # Laplace smoothing keeps rarely chosen codes from dividing by almost nothing.
        n = self.cluster_size.sum()
        smooth = (self.cluster_size + 1e-5) / (n + self.codes * 1e-5) * n
        self.embedding.copy_(self.cluster_sum / smooth[:, None])
        self.idle.add_(1).masked_fill_(count > 0, 0)
        self._revive(fresh)

    def _revive(self, fresh: Tensor) -> None:
        dead = self.idle >= self.config.patience
        self.embedding.copy_(torch.where(dead[:, None], fresh, self.embedding))
        self.cluster_sum.copy_(torch.where(dead[:, None], fresh, self.cluster_sum))
        self.cluster_size.masked_fill_(dead, 1.0)
        self.idle.masked_fill_(dead, 0)
