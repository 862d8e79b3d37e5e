"""Images by masked diffusion: all codes at once, the surest kept, the rest asked again
(MaskGIT, 2202.04200, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from chiasm.core.protocols import SamplingParams
from chiasm.generation.image_token_fsm import CODES, Grammar
from chiasm.generation.sampling import choose, guide
from chiasm.generation.sequence import Feed, Reply, Session, next_feed
from chiasm.generation.steps import Steps


def paint(
    steps: Steps, grammar: Grammar, replies: Sequence[Reply], session: Session
) -> list[list[int]]:
    """The tokens left of each reply's image, its end included. The replies are some of the
    session's, the size of their images is announced; the cache is left as it was.

    After pass t of T the floor(cos(pi t / 2T) n) least sure of an image's n codes to draw are
    masked again, given ones never. Sureness is how little there was to choose from, the negative
    entropy of the place, plus Gumbel noise times the temperature, which falls linearly to 0 (once:
    FACTS, section 2). By log p of the code that was chosen, as in the paper, what is rare would be
    chosen again and again until it is what is common; with as many passes as codes this way draws
    from what the model has learned, whatever its order.
    """
    guided, random, mask = session.guided, session.random, grammar.vocabulary.mask
    first, sampling = grammar.vocabulary.first_code, session.sampling.of_images
    assert mask is not None
    marks = [s.state.ahead()[:-1] for s in replies if s.state is not None]
    feed = next_feed(
        [
            replace(s, pending=[*s.pending, *[mask] * len(own)], position=s.position + len(own))
            for s, own in zip(replies, marks, strict=True)
        ],
        session.rows,
        guided,
    )
    known, left = _laid(marks, mask), _schedule(marks, sampling.image_steps)
    place = _places(feed, marks, steps.width(feed), guided)
    valid = np.flatnonzero(np.tile(known[0] >= 0, (1 + guided, 1)))
    trial, told = steps.trial(feed, session.cache, [*known, place.flat[valid], valid, left, place])
    ids, unknown, filled, valid, again, place = told
    unknown = unknown.bool()
    passes = max(1, sampling.image_steps)
    total = int(sum(mark == CODES for own in marks for mark in own))
    for step in range(passes):
        which = _first_true(unknown.repeat(1 + guided, 1).flatten(), total * (1 + guided))
        shown = ids.repeat(1 + guided, 1).flatten()[valid]
        logits = trial.logits(filled, shown, place.flatten()[which])[:, first:]
        if guided:
            logits = guide(*logits.chunk(2), sampling.guidance)
        which = which[:total]
        chosen = choose(logits, sampling, random) + first
        ids = ids.flatten().index_put((which,), chosen).view(ids.shape)
        doubt = torch.special.entr(logits.softmax(-1)).sum(-1)
        sure = torch.zeros_like(ids, dtype=doubt.dtype).flatten().index_put((which,), -doubt)
        noise = max(0.0, sampling.temperature) * (1 - (step + 1) / passes)
        unknown = _least_sure(sure.view(ids.shape), unknown, again[step], noise, sampling, random)
        ids = ids.masked_fill(unknown, mask)
        total = int(left[step].sum())
    trial.end()
    end = grammar.vocabulary.end_image
    return [[*row[: len(own)], end] for row, own in zip(ids.tolist(), marks, strict=True)]


def _laid(marks: Sequence[Sequence[int]], mask: int) -> list[np.ndarray]:
    """ids [n codes] with the mask where a code is to be drawn and -1 beyond an image's end; and
    which are to be drawn."""
    longest = max(map(len, marks))
    ids, unknown = np.full((len(marks), longest), -1), np.zeros((len(marks), longest), np.int64)
    for row, own in enumerate(marks):
        codes = np.array(own, np.int64)
        unknown[row, : len(own)] = codes == CODES
        ids[row, : len(own)] = np.where(codes == CODES, mask, ~codes)
    return [ids, unknown]


def _places(feed: Feed, marks: Sequence[Sequence[int]], width: int, guided: bool) -> np.ndarray:
    """Where the codes of each image, then of each twin's, stand in a feed laid flat with rows of
    `width` [n codes], anything beyond an image's end."""
    size = np.array([len(own) for own in marks] * (1 + guided))
    start = feed.flat(width) - size + 1
    return start[:, None] + np.arange(max(size))


def _schedule(marks: Sequence[Sequence[int]], steps: int) -> np.ndarray:
    """[passes n]: how many codes of each image are masked after each pass; one less at least
    than before, none after the last."""
    count = torch.tensor([sum(mark == CODES for mark in own) for own in marks])
    passes, before, left = max(1, steps), count, []
    for step in range(1, passes + 1):
        share = (math.cos(step / passes * math.pi / 2) * count).floor().long()
        before = torch.minimum(share if step < passes else 0 * count, before - 1).clamp(min=0)
        left.append(before)
    return torch.stack(left).numpy()


def _first_true(flags: Tensor, count: int) -> Tensor:
    """[count] the numbers of the true ones among flags [N], of which there are so many. A device
    that counted them would make the host wait."""
    if flags.device.type == "cpu":
        return torch.nonzero(flags)[:, 0]
    return (~flags).byte().argsort(stable=True)[:count]


def _least_sure(
    sure: Tensor,
    unknown: Tensor,
    left: Tensor,
    scale: float,
    sampling: SamplingParams,
    random: torch.Generator,
) -> Tensor:
    """[n codes] bool: which `left` [n] of the unknown are to be drawn again; scale: of the noise
    in their sureness."""
    noise = torch.empty_like(sure).exponential_(generator=random).log_().neg_()
    doubt = sure + scale * noise if sampling.temperature > 0 else sure
    rank = doubt.masked_fill(~unknown, float("inf")).argsort(dim=1, stable=True).argsort(1)
    return unknown & (rank < left[:, None])
