"""A language model that has read nothing: random weights, and words of the data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chiasm.core.quiet import quiet
from chiasm.data.text import ASSISTANT, BEGIN, END, PAD, train_bpe

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{{ '" + ASSISTANT + "' if add_generation_prompt else '' }}"
)
"""What the unified route writes around turns (data/template.py), as a chat template."""


@dataclass(frozen=True)
class LanguageShape:
    """A small Llama; by default of the unified model's shape."""

    vocabulary: int = 400
    width: int = 192
    layers: int = 4
    heads: int = 6
    hidden: int = 512


def write_language(folder: Path, texts: Sequence[str], shape: LanguageShape, seed: int) -> Path:
    """A Llama with random weights and a byte-level BPE of `texts`, as a checkpoint of transformers
    that MLLMConfig.language takes. The weights depend on the seed alone."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts, shape.vocabulary),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
    )
    words.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=words.bos_token_id,  # type: ignore[arg-type]
        eos_token_id=words.eos_token_id,  # type: ignore[arg-type]
        pad_token_id=words.pad_token_id,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with quiet():
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return folder
