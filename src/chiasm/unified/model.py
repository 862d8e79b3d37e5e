"""One causal transformer over text and image ids, trained from scratch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import Batch
from chiasm.core.device import moved_tensor
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Cost, Loss, Parts
from chiasm.core.vocab import Vocabulary
from chiasm.nn.attention import AttentionPlan, TokenIndex, packed_layout
from chiasm.nn.block import Block
from chiasm.nn.cache import KVCache
from chiasm.nn.flops import (
    attention_flops,
    is_trained,
    matrix_parameters,
    mixing_passes,
    passes,
    segment_lengths,
)
from chiasm.nn.loss import summed, supervised_loss
from chiasm.nn.norm import RMSNorm
from chiasm.nn.rope import rotation, rotation_2d
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.image_layout import (
    extend_grid,
    given_images_whole,
    grid_positions,
    images_whole,
)
from chiasm.unified.masked import mask_images
from chiasm.unified.stepper import Stepper


class Unified(nn.Module):
    """Llama-style decoder, by default in the shape of Chameleon (2405.09818, section 2).

    columns: codes in a row of an image, which two-dimensional RoPE needs.
    """

    def __init__(self, config: UnifiedConfig, vocabulary: Vocabulary, columns: int = 0):
        super().__init__()
        if config.rope == "2d" and not columns:
            raise ConfigError("model.rope 2d needs images of a known width; give columns")
        if config.image_objective == "masked" and vocabulary.mask is None:
            raise ConfigError(
                "model.image_objective masked needs an id for masked codes, which this vocabulary "
                "has not; build it with hub.unified.build"
            )
        self.config, self.vocabulary, self.columns = config, vocabulary, columns
        self.embed_tokens = nn.Embedding(vocabulary.size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(
                config.hidden_size,
                config.heads,
                config.kv_heads,
                config.intermediate_size,
                config.qk_norm,
                config.dropout,
                post_norm=config.post_norm,
                softcap=config.attention_softcap or None,
            )
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=1e-5)
        self.lm_head: nn.Linear | None = None
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, vocabulary.size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal 0.02; the matrices that write into the residual stream are scaled down by
        sqrt(2·layers) so that its variance does not grow with depth (GPT-2, section 2.3). With μP
        the variance of hidden matrices falls with the width, and so does their rate
        (train/optim.py reads `widening`)."""
        wider = self.config.widening
        hidden = {id(p) for p in self.layers.parameters()}
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "_norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * self.config.layers) ** -0.5 if writes else 1.0
                if id(parameter) in hidden:
                    scale *= wider**-0.5
                    parameter.widening = wider  # type: ignore[attr-defined]
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(
        self, batch: Batch, cache: KVCache | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B T D] after the last norm. seen: embeddings of the images' codes, where
        they are not those of their ids."""
        layout, turn = self._place(self._with_whole_images(batch, cache), cache)
        x = self.embed_tokens(batch.input_ids)
        if seen is not None:
            x = x.masked_scatter(self.vocabulary.is_code(batch.input_ids)[..., None], seen)
        for number, layer in enumerate(self.layers):
            x = layer(x, turn, layout, cache, number)
        return self.norm(x)

    def _with_whole_images(self, batch: Batch, cache: KVCache | None) -> Batch:
        """With blocks in which the codes of an image see each other, where the config says so."""
        if self.config.image_objective == "masked":
            whole = images_whole
        elif self.config.image_attention == "bidirectional":
            whole = given_images_whole
        else:
            return batch
        if batch.host is None or cache is not None:  # the ids of a decoding step are the device's
            return replace(batch, block_ids=whole(batch, self.vocabulary), host=None)
        block = whole(batch.host, self.vocabulary)
        host = replace(batch.host, block_ids=block)
        return replace(batch, block_ids=moved_tensor(block, batch.block_ids.device), host=host)

    def seen(self, batch: Batch) -> Tensor:
        """What stands for the images: the embeddings of their codes [S D]."""
        return self.embed_tokens(batch.input_ids[self.vocabulary.is_code(batch.input_ids)])

    def _place(
        self, batch: Batch, cache: KVCache | None
    ) -> tuple[AttentionPlan, tuple[Tensor, Tensor]]:
        """Who sees whom, and how queries and keys are turned."""
        index = TokenIndex(batch.segment_ids, batch.block_ids, batch.branch_ids)
        size, theta = self.config.hidden_size // self.config.heads, self.config.rope_theta
        if self.config.rope == "1d":
            layout = (
                packed_layout(index, batch.packing)
                if cache is None
                else cache.extend(index, None if len(cache) else batch.packing)
            )
            return layout, rotation(batch.position_ids, size, theta)
        if batch.image_grids is not None and bool((batch.image_grids[:, 1] != self.columns).any()):
            raise ConfigError(
                f"model.rope 2d was made for images of {self.columns} columns of codes, found "
                f"{batch.image_grids[:, 1].tolist()}; use images of one size or model.rope 1d"
            )
        if cache is None:
            grid = grid_positions(batch, self.vocabulary, self.columns)
            return packed_layout(index, batch.packing), rotation_2d(*grid, size, theta)
        layout, grid = extend_grid(cache, batch, index, self.vocabulary, self.columns)
        return layout, rotation_2d(*grid, size, theta)

    def logits(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        if self.lm_head is None:
            logits = F.linear(hidden, self.embed_tokens.weight)
        else:
            logits = self.lm_head(hidden)
        return self.scaled(logits)

    def scaled(self, logits: Tensor) -> Tensor:
        """What the head gives, as μP and the soft-cap want it."""
        if self.config.mup_base_width:
            logits = logits / self.config.widening
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def new_cache(self) -> KVCache:
        return KVCache()

    def new_stepper(self) -> Stepper:
        return Stepper(self)

    def loss(self, batch: Batch) -> Loss:
        """Next-token loss on both modalities (of masked codes instead on images where the
        objective says so), each with its weight, plus the z-loss; logits are computed only for
        tokens that have a target."""
        batch = self._masked(batch)
        (nll, z), targets = supervised_loss(self(batch), batch, self.logits)
        image = self.vocabulary.is_code(targets)
        weight = torch.where(image, self.config.image_weight, 1.0)
        total, divisor = summed(weight * nll + self.config.z_loss * z, batch)
        count, images = len(targets), self._image_targets(batch)
        image_sum = torch.where(image, nll.detach(), 0.0).sum()
        parts: Parts = {
            "text": (nll.detach().sum() - image_sum, count - images),
            "image": (image_sum, images),
            "log_z_squared": (z.detach().sum(), count),
        }
        return Loss(total, divisor, parts)

    def _masked(self, batch: Batch) -> Batch:
        """With masked diffusion the batch with codes masked, drawn in main memory: the same codes
        on every device."""
        if self.config.image_objective != "masked":
            return batch
        return mask_images(batch.on_host, self.vocabulary).to(batch.input_ids.device)

    def _image_targets(self, batch: Batch) -> int:
        """How many of the batch's targets are codes of images."""
        host = batch.on_host
        return int(self.vocabulary.is_code(host.labels.flatten()[host.supervised]).sum())

    def by_modality(self, batch: Batch) -> dict[str, Tensor]:
        """What text and image targets each contribute to the mean loss, with a graph; without the
        z-loss. Only those that occur."""
        batch = self._masked(batch)
        (nll, _), targets = supervised_loss(self(batch), batch, self.logits)
        image = self.vocabulary.is_code(targets)
        of_images = torch.where(image, nll, 0.0).sum()
        of_text = torch.where(image, 0.0, nll).sum()
        images = self._image_targets(batch)
        parts = {"text": of_text, "image": self.config.image_weight * of_images}
        there = {"text": images < len(targets), "image": images > 0}
        return {name: part / len(targets) for name, part in parts.items() if there[name]}

    def groups(self) -> dict[str, nn.Module]:
        return {
            "embedding": nn.ModuleList(filter(None, [self.embed_tokens, self.lm_head])),
            "transformer": nn.ModuleList([self.layers, self.norm]),
        }

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def cost(self, batch: Batch) -> Cost:
        batch = batch.on_host
        config, trained = self.config, {n: is_trained(part) for n, part in self.groups().items()}
        upstream = trained["embedding"]
        matrices = 2.0 * matrix_parameters(self.layers) * batch.tokens
        mixing = attention_flops(
            segment_lengths(batch.segment_ids), config.hidden_size, config.layers
        )
        parts = {
            "transformer": passes(trained["transformer"], upstream) * matrices
            + mixing_passes(upstream or trained["transformer"]) * mixing,
            "head": passes(trained["embedding"], trained["transformer"])
            * (2.0 * self.vocabulary.size * config.hidden_size * len(batch.supervised)),
        }
        return Cost(sum(parts.values()), batch.tokens, batch.images, parts)
