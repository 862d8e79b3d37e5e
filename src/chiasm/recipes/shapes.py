"""Configurations of well-known parts, so that a plan of them needs no download: numbers of their
published config.json."""

from __future__ import annotations

from typing import Any

_LLAMA7 = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
_LLAMA13 = _LLAMA7 | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_SMOL = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
_GEMMA2B = {
    "model_type": "gemma",
    "vocab_size": 257216,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "tie_word_embeddings": True,
}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_BASE |= {"num_attention_heads": 12, "patch_size": 16, "model_type": "siglip_vision_model"}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
_LARGE |= {"num_attention_heads": 16, "patch_size": 14, "model_type": "clip_vision_model"}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
_SO400M |= {"num_attention_heads": 16, "patch_size": 14, "model_type": "siglip_vision_model"}

LANGUAGE: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": _LLAMA7,
    "lmsys/vicuna-13b-v1.5": _LLAMA13,
    "smollm2": _SMOL,
    "HuggingFaceTB/SmolLM2-135M": _SMOL,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOL,
    "google/gemma-2b": _GEMMA2B,
    "google/gemma-2b-it": _GEMMA2B,
}
VISION: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": _LARGE | {"image_size": 224},
    "openai/clip-vit-large-patch14-336": _LARGE | {"image_size": 336},
    "google/siglip-base-patch16-224": _BASE | {"image_size": 224},
    "google/siglip-base-patch16-512": _BASE | {"image_size": 512},
    "google/siglip-so400m-patch14-224": _SO400M | {"image_size": 224},
    "google/siglip-so400m-patch14-384": _SO400M | {"image_size": 384},
}
