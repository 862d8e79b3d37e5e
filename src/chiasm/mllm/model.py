"""Encoder, projector, language model: three parts and a forward that joins them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chiasm.core.batch import Batch, ImageBatch
from chiasm.core.device import moved_tensor
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Cost, Loss, Parts
from chiasm.mllm.adapter import adapter_flops, adapters_of, disabled, parts_of, untouched
from chiasm.mllm.config import CrossAttentionConfig, MLLMConfig
from chiasm.mllm.embedding_alignment import alignment_loss, word_shares
from chiasm.mllm.fused_decoder import Decoder, fastest
from chiasm.mllm.hf_attention import finish_logits, run
from chiasm.mllm.projectors import InnerProjector, Projector, Sight, projector_flops, taking
from chiasm.mllm.scatter import scatter, with_class_tokens
from chiasm.mllm.vocabulary import TokenRows
from chiasm.nn.attention import TokenIndex, packed_layout
from chiasm.nn.cache import KVCache
from chiasm.nn.cpu_linear import Weights
from chiasm.nn.flops import (
    attention_flops,
    encoder_flops,
    is_trained,
    matrix_parameters,
    mixing_passes,
    passes,
    segment_lengths,
)
from chiasm.nn.fuse_norms import fuse_norms
from chiasm.nn.loss import summed, supervised_loss
from chiasm.vision.config import feature_width
from chiasm.vision.pretrained import Encoder


class Placeholders(NamedTuple):
    """Where a batch's images stand: slots [B T] bool, in main memory, and which tokens these are,
    laid flat, at [n] on the device."""

    slots: Tensor
    at: Tensor


class MLLM(nn.Module):
    """Images enter where `image_token` stands in the ids; everything else is the LLM's."""

    def __init__(self, vision: Encoder, projector: Projector, language: Any, image_token: int):
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.image_token = image_token
        self.config: MLLMConfig
        """How it was made; set by who makes it (hub/mllm.py)."""
        self.trained_whole: tuple[str, ...] = ()
        """Of vision and projector, those that training changed without adapters."""
        self.rows: TokenRows | None = None
        """Of new tokens, while the tables of the language model are frozen."""
        fuse_norms(language, self.layers())
        self.in_step = False
        self.idle: list[nn.Module] = []
        self.memory: Any = None
        """Of a frozen encoder's features, while training (train/feature_cache.py)."""
        self.recent: Any = None
        """Of features, while serving (serve/recent.py)."""
        self.decoder: Decoder | None = None
        """What runs the language model, while replies are made (generation/generator.py)."""
        self._check_reach(projector)

    def _check_reach(self, projector: Projector) -> None:
        if isinstance(projector, InnerProjector) and projector.reach > len(self.layers()):
            raise ConfigError(
                f"model.projector: reaches into layer {projector.reach - 1}, but the language "
                f"model's {len(self.layers())} layers are numbered from 0; choose lower ones"
            )

    @torch.no_grad()
    def use_projector(self, projector: Projector) -> None:
        """Take another projector, which is on the model's device. Raises ConfigError where it does
        not make the tokens of one blank image that it should."""
        self._check_reach(projector)
        side = self.vision.config.image_size // self.vision.config.patch_size
        if self.vision.config.max_patches:
            side = min(side, math.isqrt(self.vision.config.max_patches))
        grid = self._seen(torch.tensor([[side, side]]))
        rows, columns = (int(size) for size in grid[0])
        device = self.head.weight.device
        features = torch.zeros(rows * columns, feature_width(self.vision.config), device=device)
        wanted = (projector.tokens((rows, columns)), self.language.config.hidden_size)
        try:
            found = tuple(projector(features, grid).shape)
        except RuntimeError as error:  # torch's, of widths that do not fit
            raise ConfigError(
                f"model.projector: {type(projector).__name__} cannot take features "
                f"[{rows * columns}, {features.shape[1]}] ({str(error).splitlines()[0]})"
            ) from None
        if found != wanted:
            raise ConfigError(
                f"model.projector: {type(projector).__name__} makes {list(found)} of one image of "
                f"{rows} x {columns} features, expected [tokens, width of the language model] = "
                f"{list(wanted)}"
            )
        self.projector = projector

    @property
    def backbone(self) -> nn.Module:
        return self.language.base_model

    @property
    def head(self) -> nn.Linear:
        return self.language.get_output_embeddings()

    def forward(
        self, batch: Batch, cache: KVCache | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B T D] after the language model's last norm. seen: patches, where they are
        not the batch's; gradients reach them through a frozen encoder too."""
        index = TokenIndex(batch.segment_ids, batch.block_ids, batch.branch_ids, batch.position_ids)
        layout = (
            packed_layout(index, batch.packing)
            if cache is None
            else cache.extend(index, None if len(cache) else batch.packing)
        )
        features = (
            self._features_of(batch) if seen is None else self.vision(seen, batch.image_grids)
        )
        places = self._places(batch)
        x = self._embed(batch, places, features)
        steps = {}
        if isinstance(self.projector, InnerProjector):
            arranged = partial(self._arranged, batch, places)
            sight = Sight(places.slots, places.at, index, cache, arranged)
            grids = None if batch.image_grids is None else self._seen(batch.image_grids)
            steps = self.projector.between(features, grids, sight)
        if self.decoder is not None:
            return self.decoder(x, batch.position_ids, layout, cache, steps)
        with taking(steps, self.layers()):
            return run(self.language, x, batch.position_ids, layout, cache)

    def embed(self, batch: Batch) -> Tensor:
        """[B T D]: embeddings of text ids, projected features at placeholders."""
        return self._embed(batch, self._places(batch), self._features_of(batch))

    def _places(self, batch: Batch) -> Placeholders:
        slots = batch.on_host.input_ids == self.image_token
        at = slots.flatten().nonzero()[:, 0]
        return Placeholders(slots, moved_tensor(at, batch.input_ids.device))

    def _features_of(self, batch: Batch) -> Tensor | None:
        return (
            None
            if batch.image_patches is None or batch.image_grids is None
            else self.features(batch)
        )

    def _embed(self, batch: Batch, places: Placeholders, features: Tensor | None) -> Tensor:
        ids = batch.input_ids.masked_fill(batch.input_ids == self.image_token, 0)
        x = self.language.get_input_embeddings()(ids)
        if self.rows is not None:
            x = self.rows.embed(ids, x)
        if self.in_step:
            x = x + self._no_use_of_projector().to(x.dtype)
        self.idle = []
        if features is None or batch.image_grids is None:
            scatter(x.new_zeros(0, x.shape[-1]), None, places.slots, None)
            return x + 0.0 * self._see_nothing(x.device).sum() if self.in_step else x
        tokens = self.projector(features, self._seen(batch.image_grids))
        tokens = self._arranged(batch, places, tokens).to(x.dtype)
        return x.flatten(0, 1).index_copy(0, places.at, tokens).view_as(x)

    def seen(self, batch: Batch) -> Tensor:
        """What stands for the images: their patches [P d]."""
        assert batch.image_patches is not None
        return batch.image_patches

    def see(self, patches: Tensor, grids: Tensor) -> Tensor:
        """Visual tokens [T D] of images' patches [P d] with grids [N 2]."""
        return self.projector(self._encoded(patches, grids), self._seen(grids))

    def features(self, batch: Batch | ImageBatch) -> Tensor:
        """The encoder's features [P width] of a batch's images, or what is remembered of them."""
        assert batch.image_patches is not None
        memory = self.memory if self.training else self.recent
        if memory is not None:
            return memory(self.vision, batch)
        return self._encoded(batch.image_patches, batch.image_grids)

    def _encoded(self, patches: Tensor, grids: Tensor | None) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
            return self.vision(patches, grids)

    def _arranged(self, batch: Batch, places: Placeholders, tokens: Tensor) -> Tensor:
        place = batch.on_host.place
        return scatter(tokens, place, places.slots, self.projector.image_newline)

    def _seen(self, grids: Tensor) -> Tensor:
        """The grids of the features that images with these grids have."""
        return with_class_tokens(grids) if self.vision.config.class_token else grids

    def _see_nothing(self, device: torch.device) -> Tensor:
        """Features of one grey image: ranks that hold the tower in parts run it together, or those
        with images wait for ever."""
        vit = self.vision.config
        side = vit.image_size // vit.patch_size
        if vit.max_patches:
            side = min(side, math.isqrt(vit.max_patches))
        self.idle = [self.vision, self.projector]
        patches = torch.zeros(side * side, 3 * vit.patch_size**2, device=device)
        return self._encoded(patches, torch.tensor([[side, side]]))

    def _no_use_of_projector(self) -> Tensor:
        """Zero, of which all of the projector's trained parameters have a gradient: ranks that hold
        them in parts add up the same ones, whatever images each of them has."""
        zero = torch.zeros((), device=self.head.weight.device)
        return sum((0.0 * p.sum() for p in self.projector.parameters() if p.requires_grad), zero)

    def logits(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        head = self.head if self.decoder is None else self.decoder.head
        logits = head(hidden)
        if self.rows is not None:
            logits = self.rows.score(hidden, logits)
        return finish_logits(self.language.config, logits)

    def fastest_weights(self) -> Weights:
        return fastest(self.language)

    def new_decoder(self, weights: Weights) -> Decoder:
        return Decoder(self.language, weights)

    def new_cache(self) -> KVCache:
        return KVCache()

    def loss(self, batch: Batch | ImageBatch) -> Loss:
        """Next-token loss over the supervised text; logits only where there is a target. Images
        with captions alone are aligned with the language model's words
        (mllm/embedding_alignment.py)."""
        if isinstance(batch, ImageBatch):
            return self._align(batch)
        (nll, _), targets = supervised_loss(self(batch), batch, self.logits)
        total, count = summed(nll, batch)
        return Loss(total, count, {"text": (nll.detach().sum(), len(targets))})

    def _align(self, batch: ImageBatch) -> Loss:
        if isinstance(self.projector.config, CrossAttentionConfig):
            raise ConfigError(
                "the objective embed_align draws visual tokens to words, but with cross-attention "
                "images have none in the sequence; align with the objective caption"
            )
        host, device = batch.on_host, batch.image_patches.device
        assert host.texts is not None
        assert host.lengths is not None
        assert host.match is not None
        own = host.match.float().argmax(1).tolist()
        captions = [row[:n] for row, n in zip(host.texts, host.lengths.tolist(), strict=True)]
        slots = [self.projector.tokens((h, w)) for h, w in self._seen(batch.image_grids).tolist()]
        words, shares = word_shares([captions[i] for i in own], slots)
        with torch.no_grad():
            embeddings = self.language.get_input_embeddings()(moved_tensor(words, device))
        tokens = self.projector(self.features(batch), self._seen(batch.image_grids))
        which, distance = alignment_loss(tokens, embeddings, moved_tensor(shares, device))
        n = len(tokens)
        parts: Parts = {
            "word": (which.detach().sum(), n),
            "distance": (distance.detach().sum(), n),
        }
        return Loss((which + distance).sum(), n, parts)

    adapter_group = "lora"
    """The group that `adapters_off` takes away."""

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model without its low-rank adapters for a while."""
        with disabled(adapters_of(self)):
            rows, self.rows = self.rows, None
            try:
                yield
            finally:
                self.rows = rows

    def adapters_untouched(self) -> bool:
        """Whether the adapters have no effect yet: with them the model is the one without."""
        adapted = adapters_of(self)
        rows = () if self.rows is None else self.rows.parameters()
        return bool(adapted) and untouched(adapted) and not any(bool(p.any()) for p in rows)

    def groups(self) -> dict[str, nn.Module]:
        """vision, projector, language_model (embeddings, matrices, norms) and, with LoRA, lora;
        rows of new tokens belong to the adapters, or else to the language model."""
        adapted = adapters_of(self)
        rows = [] if self.rows is None else [self.rows]
        parts: dict[str, nn.Module] = {"vision": self.vision, "projector": self.projector}
        if not adapted:
            language = nn.ModuleList([self.language, *rows]) if rows else self.language
            return {**parts, "language_model": language}
        adapter = nn.ModuleList(part for layer in adapted for part in parts_of(layer))
        adapter.extend(rows)
        inside = {id(m) for m in adapter.modules()}
        parts["language_model"] = self.language
        groups = {name: _without(part, inside) for name, part in parts.items()}
        return {**groups, "lora": adapter}

    def blocks(self) -> list[nn.Module]:
        return [*self.vision.layers, *getattr(self.projector, "blocks", ()), *self.layers()]

    def units(self) -> list[nn.Module]:
        """The tower is one: for images of several grids its blocks run several times a batch. The
        projector is none: its parameters are used outside its forward as well (ends of rows, steps
        between the language model's layers), so they stay gathered for the whole of a step."""
        return [self.vision, *self.layers()]

    def layers(self) -> list[nn.Module]:
        """The language model's, first to last."""
        return list(getattr(self.backbone, "layers", None) or getattr(self.backbone, "h", []))

    def cost(self, batch: Batch | ImageBatch) -> Cost:
        """The cost model: each part times its passes."""
        batch = batch.on_host
        trained = {name: is_trained(part) for name, part in self.groups().items()}
        parts: dict[str, float] = {}
        if batch.image_patches is not None and batch.image_grids is not None:
            parts |= self._vision_cost(batch.image_grids, trained)
        if isinstance(batch, Batch):
            before = trained["vision"] or trained["projector"] or self._adapts_images()
            upstream = batch.image_patches is not None and before
            parts |= self._language_cost(batch, upstream)
            if isinstance(self.projector, InnerProjector) and batch.image_grids is not None:
                steps = self.projector.token_flops(
                    batch.input_ids == self.image_token, batch.image_grids
                )
                passed = passes(trained["projector"], upstream or trained["language_model"])
                parts["projector"] += passed * steps
        return Cost(sum(parts.values()), batch.tokens, batch.images, parts)

    def _vision_cost(self, grids: Tensor, trained: dict[str, bool]) -> dict[str, float]:
        seen = (grids if self.memory is None else self.memory.encoded).prod(1)
        adapted = bool(adapters_of(self.vision)) and is_trained(self.vision)
        vision = sum(encoder_flops(t, seen, trained["vision"], adapted) for t in self.vision.towers)
        widths = feature_width(self.vision.config), self.language.config.hidden_size
        own = bool(adapters_of(self.projector)) and is_trained(self.projector)
        state = trained["projector"], trained["vision"] or adapted or own
        projector = sum(
            projector_flops(self.projector, *widths, (h, w), *state)
            for h, w in self._seen(grids).tolist()
        )
        return {"vision": vision, "projector": projector}

    def _adapts_images(self) -> bool:
        """Whether adapters are trained before the language model."""
        parts = (self.vision, self.projector)
        return any(adapters_of(part) and is_trained(part) for part in parts)

    def _language_cost(self, batch: Batch, upstream: bool) -> dict[str, float]:
        """Layer by layer: below the first trained one, gradients need not go."""
        config = self.language.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        mixing = attention_flops(
            segment_lengths(batch.segment_ids), width * config.num_attention_heads, 1
        )
        experts = getattr(config, "num_experts_per_tok", None) or 0
        upstream = upstream or is_trained(self.language.get_input_embeddings())
        upstream = upstream or (self.rows is not None and is_trained(self.rows))
        flops = 0.0
        for layer in self.layers():
            inner = adapters_of(layer)
            adapter = {p for m in inner for part in parts_of(m) for p in part.parameters()}
            extra = sum(p.numel() for p in adapter if p.dim() >= 2)
            costs = [adapter_flops(m, batch.tokens) for m in inner]
            base = any(p.requires_grad for p in layer.parameters() if p not in adapter)
            adapted = any(p.requires_grad for p in adapter)
            matrices = 2.0 * (matrix_parameters(layer, experts) - extra) * batch.tokens
            flops += passes(base, upstream or adapted) * matrices
            flops += mixing_passes(upstream or base or adapted) * mixing
            flops += passes(adapted, upstream) * sum(cost for cost, _ in costs)
            flops += sum(once for _, once in costs)
            upstream = upstream or base or adapted
        head = 2.0 * config.vocab_size * config.hidden_size * len(batch.supervised)
        return {"language_model": flops, "head": passes(is_trained(self.head), upstream) * head}


def _without(part: nn.Module, adapter: set[int]) -> nn.Module:
    """A part of the model without the modules of adapters, given by id; itself where it has
    none."""
    if not any(id(m) in adapter for m in part.modules()):
        return part
    leaves = [m for m in part.modules() if not any(m.children()) and id(m) not in adapter]
    rest = nn.ModuleList(leaf for leaf in leaves if any(True for _ in leaf.parameters()))
    held = {id(p) for leaf in leaves for p in leaf.parameters()}
    inside = (m for m in part.modules() if id(m) in adapter)
    held |= {id(p) for m in inside for p in m.parameters()}
    # Parameters of modules with children, as class tokens and tables of positions.
    rest.append(nn.ParameterList(p for p in part.parameters() if id(p) not in held))  # type: ignore[arg-type]
    return rest
