"""What carries visual features into the language model's embedding space."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chiasm.core.errors import ConfigError
from chiasm.mllm.config import (
    AveragePoolConfig,
    CAbstractorConfig,
    CrossAttentionConfig,
    CustomProjector,
    DAbstractorConfig,
    DeepStackConfig,
    IdentityConfig,
    LinearConfig,
    MLPConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    ProjectorConfig,
    QFormerConfig,
    ResidualMLPConfig,
    TokenMergeConfig,
)
from chiasm.mllm.projectors.average_pool import AveragePoolProjector
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.c_abstractor import CAbstractorProjector
from chiasm.mllm.projectors.cross_attention import CrossAttentionProjector
from chiasm.mllm.projectors.d_abstractor import DAbstractorProjector
from chiasm.mllm.projectors.deepstack import DeepStackProjector
from chiasm.mllm.projectors.identity import IdentityProjector
from chiasm.mllm.projectors.inner import InnerProjector, Sight, taking
from chiasm.mllm.projectors.linear import LinearProjector
from chiasm.mllm.projectors.mlp import MLPProjector
from chiasm.mllm.projectors.perceiver import PerceiverProjector
from chiasm.mllm.projectors.pixel_shuffle import PixelShuffleProjector
from chiasm.mllm.projectors.qformer import QFormerProjector
from chiasm.mllm.projectors.residual import ResidualMLPProjector
from chiasm.mllm.projectors.token_merge import TokenMergeProjector

__all__ = [
    "InnerProjector",
    "Projector",
    "Sight",
    "build_projector",
    "projector_flops",
    "taking",
]

_KINDS = {
    MLPConfig: MLPProjector,
    IdentityConfig: IdentityProjector,
    LinearConfig: LinearProjector,
    ResidualMLPConfig: ResidualMLPProjector,
    PixelShuffleConfig: PixelShuffleProjector,
    AveragePoolConfig: AveragePoolProjector,
    PerceiverConfig: PerceiverProjector,
    QFormerConfig: QFormerProjector,
    CAbstractorConfig: CAbstractorProjector,
    DAbstractorConfig: DAbstractorProjector,
    TokenMergeConfig: TokenMergeProjector,
    DeepStackConfig: DeepStackProjector,
    CrossAttentionConfig: CrossAttentionProjector,
}


def build_projector(config: ProjectorConfig, vision: int, language: int, scale: float) -> Projector:
    """The projector a configuration describes, between these widths; scale: base.Projector.

    Raises ConfigError for numbers that describe none.
    """
    if isinstance(config, CustomProjector):
        made = config.build(vision, language, scale)
        made.config = config
        return made
    for name, value in vars(config).items():
        least = 0 if name in ("hidden", "width") else 1
        if type(value) is int and value < least:
            raise ConfigError(f"model.projector.{name}: {value}, but it must be at least {least}")
    return _KINDS[type(config)](config, vision, language, scale)


def projector_flops(
    projector: Projector,
    vision: int,
    language: int,
    grid: tuple[int, int],
    trained: bool = False,
    upstream: bool = False,
) -> float:
    """What one image of this grid costs in a step, forward and, where it is trained or lets
    gradients through, backward: counted by torch on shapes alone, as layers of one projector see
    patches, queries or tokens in different numbers. Counted once a projector and shape."""
    known: dict[tuple, float] = projector.__dict__.setdefault("flops_by_shape", {})
    key = vision, language, grid, trained, upstream
    if key not in known:
        known[key] = _count_flops(projector, vision, language, grid, trained, upstream)
    return known[key]


def _count_flops(
    like: Projector,
    vision: int,
    language: int,
    grid: tuple[int, int],
    trained: bool,
    upstream: bool,
) -> float:
    with torch.device("meta"):
        projector = _without_weights(like, vision, language).requires_grad_(trained)
        features = torch.empty(grid[0] * grid[1], vision, requires_grad=upstream)
    with FlopCounterMode(display=False) as counter:
        made = [projector(features, torch.tensor([grid]))]
        if isinstance(projector, InnerProjector):
            for one in projector.inner(features, torch.tensor([grid])):
                made += one if isinstance(one, tuple) else [one]
        reached = [x for x in made if x.requires_grad]
        if reached:
            torch.autograd.backward(reached, [torch.ones_like(x) for x in reached])
    return float(counter.get_total_flops())


def _without_weights(projector: Projector, vision: int, language: int) -> Projector:
    """The same on the meta device: built anew, as its weights may lie on several ranks, or, of a
    projector that no configuration describes, a copy."""
    config = projector.config
    if type(config) in _KINDS or isinstance(config, CustomProjector):
        return build_projector(config, vision, language, 1.0)
    memo: dict[int, object] = {id(b): torch.empty_like(b, device="meta")
                               for b in projector.buffers()}  # fmt: skip
    for p in projector.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    return copy.deepcopy(projector, memo)
