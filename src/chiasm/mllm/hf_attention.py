"""How a backbone from transformers runs here: through our attention, told who sees whom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.nn.attention import AttentionPlan, attention
from chiasm.nn.norm import lowered

SEAM = "chiasm"
"""The name under which transformers knows our attention."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Any,
    scaling: float | None = None,
    layout: AttentionPlan | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over ours: [B H T D] -> [B T H D]. Whatever mask
    transformers would build is ignored, so packed samples cannot leak by a default."""
    if layout is None:
        raise RuntimeError("the language model was called without a layout; call it through MLLM")
    # Their rotary embedding gives fp32 under autocast, which every product would cast anew.
    query, key, value = lowered(query), lowered(key), lowered(value)
    mixed = attention(query, key, value, layout, scaling, softcap, sliding_window, s_aux)
    return mixed.transpose(1, 2).contiguous(), None


def finish_logits(config: Any, logits: Tensor) -> Tensor:
    """The logits as some families change them: capped (Gemma 2), scaled (Cohere, Granite)."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


def run(
    model: Any, x: Tensor, position: Tensor, layout: AttentionPlan, cache: Any = None
) -> Tensor:
    """Hidden states [B T D] after the last norm, of embeddings [B T D] at positions [B T]."""
    return model.base_model(
        inputs_embeds=x,
        position_ids=position,
        past_key_values=cache,
        use_cache=False,
        layout=layout,
    ).last_hidden_state
