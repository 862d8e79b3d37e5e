"""Encoder, projector, language model: three parts and a forward that joins them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.protocols import Cost, Loss
from chiasm.mllm.adapter import adapters_of
from chiasm.mllm.projectors.mlp import MLPProjector
from chiasm.nn.attention import Index, packed_layout
from chiasm.nn.cache import KVCache
from chiasm.nn.flops import attention_flops, is_trained, matrix_parameters, passes
from chiasm.nn.loss import token_loss
from chiasm.vision.vit import ViT


class MLLM(nn.Module):
    """Pictures enter where `image_token` stands in the ids; everything else is the LLM's."""

    def __init__(self, vision: ViT, projector: MLPProjector, language: Any, image_token: int):
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.image_token = image_token

    @property
    def backbone(self) -> nn.Module:
        return self.language.base_model

    @property
    def head(self) -> nn.Linear:
        return self.language.get_output_embeddings()

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Hidden states [B T D] after the language model's last norm."""
        index = Index(batch.segment, batch.block, batch.branch)
        layout = packed_layout(index) if cache is None else cache.extend(index)
        return self.backbone(
            inputs_embeds=self.embed(batch),
            position_ids=batch.position,
            past_key_values=cache,
            use_cache=False,
            layout=layout,
        ).last_hidden_state

    def embed(self, batch: Batch) -> Tensor:
        """[B T D]: embeddings of text ids, projected features at placeholders."""
        slots = batch.ids == self.image_token
        x = self.language.get_input_embeddings()(batch.ids.masked_fill(slots, 0))
        if batch.patches is None or batch.grids is None:
            _check_slots(slots, 0, 0)
            return x
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
            features = self.vision(batch.patches, batch.grids)
        tokens = self.projector(features, batch.grids)
        _check_slots(slots, len(tokens), len(batch.grids))
        return x.masked_scatter(slots[..., None], tokens.to(x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        return self.head(hidden)

    def new_cache(self) -> KVCache:
        return KVCache()

    def loss(self, batch: Batch) -> Loss:
        """Next-token loss over the supervised text; logits only where there is a target."""
        wanted = batch.targets != IGNORE
        targets = batch.targets[wanted]
        nll, _ = token_loss(self.logits(self(batch)[wanted]), targets)
        total = nll.sum()
        return Loss(total, len(targets), {"text": (total.item(), len(targets))})

    def groups(self) -> dict[str, nn.Module]:
        """vision, projector, language (embeddings, matrices, norms) and, with LoRA, adapter."""
        adapted = adapters_of(self.language)
        if not adapted:
            return {"vision": self.vision, "projector": self.projector, "language": self.language}
        adapter = nn.ModuleList(m for layer in adapted for m in (layer.lora_A, layer.lora_B))
        inside = {id(m) for m in adapter.modules()}
        leaves = [
            m
            for m in self.language.modules()
            if not any(m.children())
            and id(m) not in inside
            and any(True for _ in m.parameters(recurse=False))
        ]
        return {
            "vision": self.vision,
            "projector": self.projector,
            "language": nn.ModuleList(leaves),
            "adapter": adapter,
        }

    def blocks(self) -> list[nn.Module]:
        layers = getattr(self.backbone, "layers", None) or getattr(self.backbone, "h", [])
        return [*self.vision.layers, *layers]

    def cost(self, batch: Batch) -> Cost:
        """The cost model: vision, projector, language and head, each times its passes."""
        trained = {name: is_trained(part) for name, part in self.groups().items()}
        lm_trained = trained["language"] or trained.get("adapter", False)
        upstream = trained["vision"] or trained["projector"]
        flops = 0.0
        if batch.patches is not None and batch.grids is not None:
            vision = 2.0 * matrix_parameters(self.vision) * len(batch.patches)
            vision += attention_flops(
                batch.grids.prod(1), self.vision.config.width, self.vision.config.layers
            )
            flops += passes(trained["vision"], False) * vision
            visual = int((batch.ids == self.image_token).sum())
            flops += passes(trained["projector"], trained["vision"]) * (
                2.0 * matrix_parameters(self.projector) * visual
            )
        config = self.language.config
        adapter = sum(
            p.numel()
            for m in adapters_of(self.language)
            for part in (m.lora_A, m.lora_B)
            for p in part.parameters()
        )
        base = matrix_parameters(self.backbone) - adapter
        lengths = torch.bincount(
            (
                batch.segment
                + 1
                + torch.arange(len(batch.segment))[:, None] * (int(batch.segment.max()) + 2)
            )[batch.segment >= 0]
        )
        language = 2.0 * base * batch.tokens + attention_flops(
            lengths, config.hidden_size, config.num_hidden_layers
        )
        flops += passes(trained["language"], upstream or lm_trained) * language
        flops += passes(lm_trained, upstream) * 2.0 * adapter * batch.tokens
        head = 2.0 * config.vocab_size * config.hidden_size * int((batch.targets != IGNORE).sum())
        flops += passes(trained["language"], True) * head
        return Cost(flops, batch.tokens, batch.images)


def _check_slots(slots: Tensor, tokens: int, pictures: int) -> None:
    count = int(slots.sum())
    if count != tokens:
        raise ValueError(
            f"{count} image placeholders but {tokens} visual tokens from {pictures} pictures; "
            "encode the batch with this model's own processor"
        )
