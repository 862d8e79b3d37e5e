"""New special tokens for a pretrained language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def add_tokens(language: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give each of `tokens` that the tokenizer lacks an id and a row of the embedding and the head,
    which stay tied where they were. The tables grow only where they have no row to spare."""
    known, before = tokenizer.get_vocab(), len(tokenizer)
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    if not fresh:
        return
    tokenizer.add_tokens(fresh, special_tokens=True)
    if len(tokenizer) > len(language.get_input_embeddings().weight):
        # The rows are filled below; its own way costs a covariance of the whole table.
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    parts = (language.get_input_embeddings(), language.get_output_embeddings())
    tables = {id(part.weight): part for part in parts}
    for part in tables.values():
        part.weight[before : len(tokenizer)] = like(part.weight[:before], len(fresh))
        if getattr(part, "bias", None) is not None:
            part.bias[before : len(tokenizer)] = part.bias[:before].mean()


def like(table: Tensor, count: int, spread: float = 1e-5) -> Tensor:
    """New rows [count D] for a table [V D]: its mean, with `spread` times its covariance.

    The mean keeps a new word about as likely as the others are on average, where small random rows
    would draw all probability to themselves (Hewitt, "Initializing New Word Embeddings for
    Pretrained Language Models", 2021); the spread lets gradients tell new words apart. A sum of
    the rows with independent weights of variance 1/V has their covariance.
    """
    table = table.float()
    mean = table.mean(0)
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(count, len(table), generator=random).to(table) / len(table) ** 0.5
    return mean + spread**0.5 * (weights @ table - weights.sum(1, keepdim=True) * mean)
