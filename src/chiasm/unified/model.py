"""One causal transformer over text and image ids, trained from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.protocols import Cost, Loss
from chiasm.core.vocab import Vocabulary
from chiasm.nn.attention import Index, packed_layout
from chiasm.nn.block import Block
from chiasm.nn.cache import KVCache
from chiasm.nn.flops import attention_flops, matrix_parameters
from chiasm.nn.loss import summed, token_loss
from chiasm.nn.norm import RMSNorm
from chiasm.nn.rope import rotation
from chiasm.unified.config import UnifiedConfig


class Unified(nn.Module):
    """Llama-style decoder with an untied head, the shape of Chameleon (2405.09818, section 2)."""

    def __init__(self, config: UnifiedConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embed_tokens = nn.Embedding(vocabulary.size, config.width)
        self.layers = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.kv_heads,
                config.hidden,
                config.qk_norm,
                config.dropout,
            )
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width, eps=1e-5)
        self.lm_head = nn.Linear(config.width, vocabulary.size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal 0.02; the matrices that write into the residual stream are scaled down by
        sqrt(2·layers) so that its variance does not grow with depth (GPT-2, section 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "_norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * self.config.layers) ** -0.5 if writes else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Hidden states [B T D] after the last norm."""
        index = Index(batch.segment, batch.block, batch.branch)
        layout = packed_layout(index) if cache is None else cache.extend(index)
        turn = rotation(
            batch.position, self.config.width // self.config.heads, self.config.rope_theta
        )
        x = self.embed_tokens(batch.ids)
        for number, layer in enumerate(self.layers):
            x = layer(x, turn, layout, cache, number)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        return self.lm_head(hidden)

    def new_cache(self) -> KVCache:
        return KVCache()

    def loss(self, batch: Batch) -> Loss:
        """Next-token loss on both modalities, each with its weight, plus the z-loss; logits are
        computed only for tokens that have a target."""
        wanted = batch.targets != IGNORE
        targets = batch.targets[wanted]
        hidden = self(batch)[wanted]
        nll, z = token_loss(self.logits(hidden), targets)
        image = self.vocabulary.is_code(targets)
        weight = torch.where(image, self.config.image_weight, 1.0)
        total, divisor = summed(weight * nll + self.config.z_loss * z, batch, wanted)
        count, pictures = len(targets), int(image.sum())
        image_sum = nll.detach()[image].sum().item()
        parts = {
            "text": (nll.detach().sum().item() - image_sum, count - pictures),
            "image": (image_sum, pictures),
            "log_z_squared": (z.detach().sum().item(), count),
        }
        return Loss(total, divisor, parts)

    def groups(self) -> dict[str, nn.Module]:
        return {
            "embedding": nn.ModuleList([self.embed_tokens, self.lm_head]),
            "transformer": nn.ModuleList([self.layers, self.norm]),
        }

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def cost(self, batch: Batch) -> Cost:
        counts = torch.unique_consecutive(
            batch.segment + torch.arange(len(batch.segment))[:, None] * (batch.segment.max() + 2),
            return_counts=True,
        )[1]
        supervised = int((batch.targets != IGNORE).sum())
        forward = 2.0 * matrix_parameters(self.layers) * batch.tokens
        forward += attention_flops(counts, self.config.width, self.config.layers)
        forward += 2.0 * self.vocabulary.size * self.config.width * supervised
        return Cost(3 * forward, batch.tokens, batch.images)
