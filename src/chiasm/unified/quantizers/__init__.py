"""Discrete bottlenecks: each turns [B C h w] into codes and back."""

from __future__ import annotations

from chiasm.unified.config import (
    CustomQuantizer,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualVQConfig,
    VQConfig,
)
from chiasm.unified.quantizers.base import Quantized, Quantizer
from chiasm.unified.quantizers.fsq import FSQ
from chiasm.unified.quantizers.lfq import LFQ
from chiasm.unified.quantizers.residual_vq import ResidualVQ
from chiasm.unified.quantizers.vq_ema import VQEMA

__all__ = ["FSQ", "LFQ", "VQEMA", "Quantized", "Quantizer", "ResidualVQ", "build_quantizer"]

BUILDERS = {FSQConfig: FSQ, LFQConfig: LFQ, VQConfig: VQEMA, ResidualVQConfig: ResidualVQ}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer a configuration describes."""
    if isinstance(config, CustomQuantizer):
        return config.build()
    return BUILDERS[type(config)](config)  # type: ignore[arg-type]
