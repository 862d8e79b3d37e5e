"""Whether a language model computes under packing what it computes alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chiasm.mllm.hf_attention import SEAM, attention_forward, finish_logits, run
from chiasm.nn.attention import TokenIndex, packed_layout

FIRST, SECOND = 5, 7
"""Tokens of the two segments of the probe."""


@torch.no_grad()
def what_hinders(model: Any) -> str | None:
    """Why a causal language model cannot be trusted with packed samples, or None.

    Asked of the model itself, as no list of architectures stays complete: the logits of one short
    segment behind another, through our attention, must equal those that transformers' own eager
    attention gives it alone. A state that runs on from token to token, positions counted along the
    row, a bias or a scale that we do not know: each of them shows.
    """
    if model.config.get_text_config() is not model.config:
        return "it reads images by itself already"
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"its layers are of the kinds {', '.join(sorted(kinds))}"
    training = model.training
    model.eval()
    try:
        packed, windows = _packed_logits(model)
        model.config._attn_implementation = "eager"
        alone = model(input_ids=_probe(model)[:, FIRST:], use_cache=False).logits
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        line, _, _ = str(error).partition("\n")
        return f"it does not run through our attention ({line})"
    finally:
        model.config._attn_implementation = SEAM
        model.train(training)
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    if not torch.dist(packed, alone) <= (1e-3 if exact else 5e-2) * alone.norm():
        return "a sample behind another in one row does not give the logits that it gives alone"
    if _slides(model.config) and not any(windows):
        return "it does not tell its attention how far a layer looks back"
    return None


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return "sliding_attention" in kinds
    return bool(getattr(config, "sliding_window", None))


def _probe(model: Any) -> Tensor:
    ids = torch.arange(1, FIRST + SECOND + 1, device=model.device)[None]
    return ids * 7919 % model.config.vocab_size


def _packed_logits(model: Any) -> tuple[Tensor, list[int | None]]:
    """Logits [1 SECOND V] of the second segment, and the windows that the layers asked for."""
    from transformers.modeling_utils import AttentionInterface

    windows: list[int | None] = []

    def watched(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        windows.append(kwargs.get("sliding_window"))
        return attention_forward(*args, **kwargs)

    AttentionInterface.register(f"{SEAM}-watched", watched)
    model.config._attn_implementation = f"{SEAM}-watched"
    ids = _probe(model)
    position = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None].to(ids)
    segment = (torch.arange(FIRST + SECOND) >= FIRST).long()[None].to(ids)
    hidden = run(
        model,
        model.get_input_embeddings()(ids),
        position,
        packed_layout(TokenIndex(segment, position, torch.zeros_like(segment), position)),
    )
    logits = finish_logits(model.config, model.get_output_embeddings()(hidden))
    return logits[:, FIRST:], windows
