"""Discrete bottlenecks: each turns [B C h w] into codes and back."""

from __future__ import annotations

from chiasm.unified.config import FSQConfig, VQConfig
from chiasm.unified.quantizers.base import Quantized, Quantizer
from chiasm.unified.quantizers.fsq import FSQ
from chiasm.unified.quantizers.vq_ema import VQEMA

__all__ = ["FSQ", "VQEMA", "Quantized", "Quantizer", "build_quantizer"]


def build_quantizer(config: FSQConfig | VQConfig) -> Quantizer:
    """The quantizer a configuration describes."""
    return FSQ(config) if isinstance(config, FSQConfig) else VQEMA(config)
