"""Norms of towers and language models from transformers, computed as ours are (nn/norm.py).

Their RMSNorm is six operations and as many more backwards; and what their blocks' norms give under
autocast is cast anew by every matrix that reads it. Weights, names and, but for rounding, numbers
stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from chiasm.nn.norm import RMSNorm, lowered

PRE_NORMS = (
    {"input_layernorm", "post_attention_layernorm"},  # Llama, Qwen, GPT-NeoX
    {"layer_norm1", "layer_norm2"},  # CLIP, SigLIP
    {"norm1", "norm2"},  # DINOv2, DINOv3
    {"ln_1", "ln_2"},  # GPT-2
)
"""What blocks call their norms in which nothing but matrices reads them; others have more."""


def fuse_norms(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Replace the RMS norms of a model, and cast once what the norms of its blocks give."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_plain(type(child)) and getattr(child, "weight", None) is not None:
                setattr(parent, name, _as_ours(child))
    for block in blocks:
        norms = {name for name, child in block.named_children() if "Norm" in type(child).__name__}
        if norms in PRE_NORMS:
            for name in norms:
                block.get_submodule(name).register_forward_hook(_lower)


@lru_cache
def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class of modules is an RMS norm as ours. Asked of one of them, as there are those
    that add 1 to the weight (Gemma) and no list stays complete."""
    if not kind.__name__.endswith("RMSNorm") or issubclass(kind, nn.RMSNorm):
        return False
    with unset_fake_temporarily(), torch.no_grad(), torch.device("cpu"):
        try:
            theirs: Any = kind(8, eps=1e-3)
            if theirs.weight is None:
                return False
            theirs.weight.copy_(torch.linspace(0.5, 2, 8))
            x, ours = torch.linspace(-3, 2, 8)[None], _as_ours(theirs)
            return torch.allclose(theirs(x), ours(x), rtol=1e-5, atol=1e-6)
        except (AttributeError, TypeError, RuntimeError):
            return False


def _as_ours(module: Any) -> RMSNorm:
    """Our norm with a module's weight."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    norm = RMSNorm(module.weight.shape[0], eps=eps, device="meta")
    norm.weight = module.weight
    return norm.train(module.training)


def _lower(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return lowered(output)
