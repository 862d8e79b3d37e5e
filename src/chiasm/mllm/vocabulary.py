"""New special tokens of a language model, and rows for them where its tables are frozen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.errors import CheckpointError


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


class TokenRows(nn.Module):
    """Rows of a few tokens that are trained while the embedding and the head are frozen.

    ids [n] of the tokens; embedding [n D] and, where a head of its own is frozen too, head [n D]:
    what is added to their rows of the frozen tables. They start at zero, so the function is
    unchanged. The same idea as peft's trainable_token_indices, without a copy of the table.
    """

    ids: Tensor

    def __init__(self, language: Any, ids: Sequence[int], frozen_head: bool):
        super().__init__()
        words, head = language.get_input_embeddings(), language.get_output_embeddings()
        table = words.weight
        self.register_buffer("ids", torch.tensor(ids, device=table.device), persistent=False)
        zeros = partial(torch.zeros, len(ids), dtype=torch.float32, device=table.device)
        self.embedding = nn.Parameter(zeros(words.embedding_dim))
        self.tied = head.weight is table
        own = frozen_head and not self.tied
        self.head = nn.Parameter(zeros(head.in_features)) if own else None
        self.scale = getattr(words, "scalar_embed_scale", 1.0)

    def embed(self, ids: Tensor, x: Tensor) -> Tensor:
        """The frozen table's embeddings x [B T D] of ids [B T], with what is added to them."""
        found = (ids[..., None] == self.ids).to(x.dtype)
        return x + found @ (self.embedding * self.scale).to(x.dtype)

    def score(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """The head's logits [... V] of hidden states [... D], changed in place."""
        rows = self.embedding if self.tied else self.head
        if rows is None:  # the head is trained itself
            return logits
        return logits.index_add_(-1, self.ids, F.linear(hidden, rows).to(logits.dtype))

    @torch.no_grad()
    def merge(self, language: Any) -> None:
        """Add the rows to the tables for good."""
        words, head = language.get_input_embeddings(), language.get_output_embeddings()
        words.weight[self.ids] += self.embedding.to(words.weight.dtype)
        if self.head is not None:
            head.weight[self.ids] += self.head.to(head.weight.dtype)


def save_rows(file: Path, rows: TokenRows, names: Sequence[str]) -> None:
    """What was learnt of the tokens `names`, beside the adapters."""
    state = {name: value.detach().cpu().contiguous() for name, value in rows.state_dict().items()}
    save_file(state, file, {"format": "pt", "tokens": json.dumps(list(names))})


def load_rows(file: Path, rows: TokenRows, names: Sequence[str]) -> None:
    """Fill rows with what save_rows wrote. CheckpointError where they are of other tokens."""
    if not file.exists():
        raise CheckpointError(
            f"{file}: no such file, so what was learnt of model.extra_special_tokens "
            f"({', '.join(names)}) is missing; give the whole folder of the run"
        )
    with safe_open(file, "pt") as opened:
        told = json.loads((opened.metadata() or {}).get("tokens", "[]"))
        if told != list(names):
            raise CheckpointError(f"{file}: rows of {', '.join(told)}, not of {', '.join(names)}")
        rows.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
