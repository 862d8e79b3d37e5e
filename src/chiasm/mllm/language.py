"""Pretrained language models from transformers, checked before they are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chiasm.core.errors import CheckpointError
from chiasm.core.hf_tokenizer import load_hf_tokenizer
from chiasm.core.quiet import quiet
from chiasm.mllm.gguf import PACKAGED, convert_gguf
from chiasm.mllm.hf_attention import SEAM, attention_forward
from chiasm.mllm.packing_check import what_hinders


def load_language(source: str, quantisation: Any = None) -> tuple[Any, Any]:
    """(causal language model in fp32, its tokenizer) from a name in PACKAGED, a .gguf file, a
    folder or a hub id. quantisation: transformers' configuration of the matrices' precision.

    Raises CheckpointError where there is none, or one that cannot be packed
    (mllm/packing_check.py); MissingExtraError where a package is missing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(SEAM, attention_forward)
    folder = _resolve(source)
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=SEAM,
                quantization_config=quantisation,
            )
            tokenizer = load_hf_tokenizer(folder)
        except (OSError, ValueError, KeyError) as error:
            if error.args == (SEAM,):  # looked up among its own classes of attention
                raise _unfit(source, "its architecture has an attention of its own") from None
            raise CheckpointError(
                f"{source}: no language model that transformers can load "
                f"({str(error).splitlines()[0]}); give a folder, a .gguf file or a hub id"
            ) from None
    reason = what_hinders(model)
    if reason:
        raise _unfit(source, reason)
    return model, tokenizer


def adopt_language(base: Any, head: Any, source: str) -> Any:
    """The language model of a larger checkpoint at `source`, already loaded, from its body and its
    head. Raises CheckpointError for one that cannot be packed."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(SEAM, attention_forward)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base.config)
    setattr(model, model.base_model_prefix, base)
    model.set_output_embeddings(head)
    model.config = base.config
    model.set_attn_implementation(SEAM)
    reason = what_hinders(model)
    if reason:
        raise _unfit(source, reason)
    return model.eval()


def load_tokenizer(source: str) -> Any:
    """The tokenizer alone of what load_language takes. Raises CheckpointError."""
    with quiet():
        try:
            return load_hf_tokenizer(_resolve(source))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{source}: no tokenizer that transformers can load "
                f"({str(error).splitlines()[0]}); give a folder, a .gguf file or a hub id"
            ) from None


def _unfit(source: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: this language model cannot be used here: {reason}; "
        "choose a decoder such as Llama, Qwen, Gemma, GPT-2 or GPT-NeoX"
    )


def _resolve(source: str) -> str:
    if source in PACKAGED:
        return str(PACKAGED[source]())
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return str(convert_gguf(path))
    return str(path) if path.exists() else source
