"""Pictures by masked diffusion: all codes at once, the surest kept, the rest asked again
(MaskGIT, 2202.04200, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chiasm.infer.grammar import CODES, Grammar
from chiasm.infer.replies import Reply, Session, next_batch
from chiasm.infer.sampling import choose, guide


def paint(
    model: Any, grammar: Grammar, replies: Sequence[Reply], session: Session
) -> list[list[int]]:
    """The tokens left of each reply's picture, its end included. The replies are some of the
    session's, the size of their pictures is announced; the cache is left as it was.

    After pass t of T the floor(cos(pi t / 2T) n) least sure of a picture's n codes to draw are
    masked again, given ones never. Sureness is how little there was to choose from, the negative
    entropy of the place, plus Gumbel noise times the temperature, which falls linearly to 0 (once:
    FACTS, section 2). By log p of the code that was chosen, as in the paper, what is rare would be
    chosen again and again until it is what is common; with as many passes as codes this way draws
    from what the model has learned, whatever its order.
    """
    cache, guided, random = session.cache, session.guided, session.random
    device, mask = random.device, grammar.vocabulary.mask
    assert mask is not None
    marks = [s.state.ahead()[:-1] for s in replies if s.state is not None]
    longest, n = max(map(len, marks)), len(marks)
    ids = torch.full((n, longest), mask)
    unknown = torch.zeros(n, longest, dtype=torch.bool)
    for row, own in enumerate(marks):
        unknown[row, : len(own)] = torch.tensor(own) == CODES
        ids[row, : len(own)] = torch.tensor([mask if m == CODES else ~m for m in own])
    feeds = [
        replace(s, pending=[*s.pending, *[mask] * len(own)], position=s.position + len(own))
        for s, own in zip(replies, marks, strict=True)
    ]
    batch, (line, last) = next_batch(feeds, session.rows, guided)
    batch, ids, unknown = batch.to(device), ids.to(device), unknown.to(device)
    size = torch.tensor([len(own) for own in marks])
    valid = (torch.arange(longest) < size[:, None]).repeat(1 + guided, 1)
    column = last[:, None] - size.repeat(1 + guided)[:, None] + 1 + torch.arange(longest)
    place = (line[:, None].expand_as(column)[valid].to(device), column[valid].to(device))
    valid = valid.to(device)
    count, length, first = unknown.sum(1), len(cache), grammar.vocabulary.first_code
    sampling = session.sampling.of_images
    for step in range(max(1, sampling.image_steps)):
        told, asked = (held.repeat(1 + guided, 1)[valid] for held in (ids, unknown))
        hidden = model(replace(batch, ids=batch.ids.index_put(place, told)), cache)
        cache.forget(length)
        logits = model.logits(hidden[place][asked])[:, first:].float()
        if guided:
            logits = guide(*logits.chunk(2), sampling.guidance)
        ids = ids.masked_scatter(unknown, choose(logits, sampling, random) + first)
        doubt = torch.special.entr(logits.softmax(-1)).sum(-1)
        sure = torch.zeros_like(ids, dtype=doubt.dtype).masked_scatter(unknown, -doubt)
        done = (step + 1) / max(1, sampling.image_steps)
        unknown = _least_sure(sure, unknown, count, done, sampling.temperature, random)
        ids = ids.masked_fill(unknown, mask)
    assert not bool(unknown.any())
    end = grammar.vocabulary.end_image
    return [[*row[: len(own)], end] for row, own in zip(ids.tolist(), marks, strict=True)]


def _least_sure(
    sure: Tensor,
    unknown: Tensor,
    count: Tensor,
    done: float,
    temperature: float,
    random: torch.Generator,
) -> Tensor:
    """[n codes] bool: which of the unknown are to be drawn again when `done` of the passes are
    over; at least one of them is not."""
    left = (math.cos(done * math.pi / 2) * count).floor() if done < 1 else torch.zeros_like(count)
    left = torch.minimum(left, unknown.sum(1) - 1)
    noise = torch.empty_like(sure).exponential_(generator=random).log_().neg_()
    doubt = sure + max(0.0, temperature) * (1 - done) * noise if temperature > 0 else sure
    rank = doubt.masked_fill(~unknown, float("inf")).argsort(dim=1, stable=True).argsort(1)
    return unknown & (rank < left[:, None])
