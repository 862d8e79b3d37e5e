"""The next tokens of jobs that are answered together, fetched from the device at once.

Every job has its own way of sampling and its own source of randomness, so that a reply does not
depend on its company: rows that choose alike are computed together, the noise of each is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chiasm.core.device import moved_tensor, pinned
from chiasm.core.protocols import SamplingParams
from chiasm.generation.sampling import choose_each
from chiasm.generation.sequence import Reply
from chiasm.serve.job import Job, Score


@dataclass
class _Alike:
    """Rows that choose by the same distribution, from all ids or from image codes alone."""

    sampling: SamplingParams
    codes: bool
    rows: list[int] = field(default_factory=list)
    random: list[torch.Generator | None] = field(default_factory=list)


def chosen(
    jobs: Sequence[tuple[Job, Reply]], logits: Tensor, first_code: int
) -> list[tuple[int, Score | None]]:
    """Each job's next token from permitted logits [N V], with its score where the job wants one.
    What has to come at the end of an image takes nothing from the source of randomness, as in the
    Generator."""
    ids, order = [], []
    for alike in _sorted(jobs):
        rows = _rows(logits, alike.rows)
        rows = rows[:, first_code:] if alike.codes else rows
        own = choose_each(rows, alike.sampling, alike.random)
        ids.append(own + first_code if alike.codes else own)
        order += alike.rows
    scored = [i for i in order if jobs[i][0].top >= 0]
    tokens = torch.cat(ids) if ids else logits.new_zeros(0, dtype=torch.long)
    parts = [_scores(logits[i], tokens[order.index(i)], jobs[i][0].top) for i in scored]
    # The only wait for the device in a step.
    fetched = torch.cat([tokens, *parts]).tolist()
    found: list[tuple[int, Score | None]] = []
    free, rest = dict(zip(order, fetched, strict=False)), fetched[len(order) :]
    scores = {}
    for i in scored:
        size = 1 + 2 * jobs[i][0].top
        scores[i], rest = rest[:size], rest[size:]
    for i, (job, reply) in enumerate(jobs):
        forced = _forced(reply)
        token = free[i] if forced is None else forced
        found.append((token, _score(token, scores[i], job.top) if i in scores else None))
    return found


def _forced(reply: Reply) -> int | None:
    """The only token that may come inside an image."""
    if reply.state is None or not reply.state.open:
        return None
    mark = reply.state.allowed()
    return ~mark if mark < 0 else None


def _sorted(jobs: Sequence[tuple[Job, Reply]]) -> list[_Alike]:
    """The rows that choose, by how they do. Randomness is drawn also for a code that is given, as
    for all others, but not for what follows the last of them."""
    found: dict[tuple, _Alike] = {}
    for row, (job, reply) in enumerate(jobs):
        inside, codes = job.sampling.of_images, reply.state is not None and reply.state.open
        if codes and max(reply.state.ahead()) < 0:  # type: ignore[union-attr]
            continue
        own = inside if codes or reply.drawing else job.sampling
        draws = own.temperature > 0 or (not codes and inside is not job.sampling)
        key = (codes, own.temperature, own.top_k, own.top_p)
        alike = found.setdefault(key, _Alike(own, codes))
        alike.rows.append(row)
        alike.random.append(job.random if draws else None)
    return list(found.values())


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    if rows == list(range(len(logits))):
        return logits
    return logits[moved_tensor(pinned(torch.tensor(rows), logits.device), logits.device)]


def _scores(logits: Tensor, token: Tensor, top: int) -> Tensor:
    """[1 + 2 top] int64: the bits of the token's log-probability and of the likeliest ones', then
    their ids."""
    chances = logits.log_softmax(-1)
    values, ids = chances.topk(top) if top else (chances[:0], token[None][:0])
    bits = torch.cat([chances.gather(0, token[None]), values]).view(torch.int32).long()
    return torch.cat([bits, ids])


def _score(token: int, told: list[int], top: int) -> Score:
    values = torch.tensor(told[: 1 + top], dtype=torch.int32).view(torch.float32).tolist()
    return Score(token, values[0], tuple(zip(told[1 + top :], values[1:], strict=True)))
