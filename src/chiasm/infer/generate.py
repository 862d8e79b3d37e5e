"""Replies, token by token, for both routes.

Rows are prompts; questions about one picture are branches of one row, so the picture is computed
once. Every step adds one token to each unfinished branch of every row. With guidance each row has a
twin without the condition that is fed the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.errors import NotGenerativeError
from chiasm.core.protocols import Piece, Sampling
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.infer.sampling import choose, guide
from chiasm.nn.precision import Precision, autocast

T = TypeVar("T")


@dataclass
class _Sequence:
    """One reply in the making: a branch of a row; shift is how much later its twin stands."""

    sample: int
    row: int
    branch: int
    position: int
    shift: int = 0
    text: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    drawing: bool = False
    images: int = 0
    shown: str = ""
    token: int = 0
    done: bool = False


class Generator:
    """Answers samples with a model: a `Respond` (core.protocols).

    tokens: budget of padded prompt tokens that are computed together. precision: "auto" computes in
    bfloat16 where that is faster; by default in the weights' own, in which replies do not depend on
    what else is in the batch. Whether it can draw is the codec's to say.
    """

    def __init__(
        self, model: Any, processor: Processor, tokens: int = 4096, precision: Precision = "none"
    ):
        self.model, self.processor, self.tokens = model, processor, tokens
        self.precision: Precision = precision
        self.vocabulary = processor.codec.vocabulary
        self.codes_per_image = processor.codec.codes_per_image
        self.device = next(model.parameters()).device

    def __call__(
        self, samples: Sequence[Sample], sampling: Sampling
    ) -> Iterator[tuple[int, Piece]]:
        """Yields (index of the sample, piece) as soon as a piece is known; the last piece of a
        reply has `finish` set. Raises NotGenerativeError if a picture is wanted of a model that
        cannot draw, DataError for a sample that cannot be encoded."""
        if (sampling.draw_first or sampling.max_images) and not self.codes_per_image:
            raise NotGenerativeError(
                "this model reads pictures but cannot draw them; use a unified model"
            )
        self.model.eval()
        random = torch.Generator(device=self.device).manual_seed(sampling.seed)
        prompts = self.processor.prompts(samples)
        for chunk in chunks(prompts, self.tokens, lambda prompt: len(prompt[0])):
            yield from self._reply(chunk, samples, sampling, random)

    def _reply(
        self,
        prompts: list[tuple[Encoded, list[int]]],
        samples: Sequence[Sample],
        sampling: Sampling,
        random: torch.Generator,
    ) -> Iterator[tuple[int, Piece]]:
        rows = [encoded for encoded, _ in prompts]
        guided = sampling.guidance != 1.0 and bool(sampling.draw_first or sampling.max_images)
        if guided:
            rows += [self.processor.unconditional(samples[members[0]]) for _, members in prompts]
        live = [
            _Sequence(sample, row, branch + 1 if len(members) > 1 else 0, 0)
            for row, (_, members) in enumerate(prompts)
            for branch, sample in enumerate(members)
        ]
        cache = self.model.new_cache()
        batch = pack([[row] for row in rows])
        place = self._last_tokens(live, rows, len(prompts) if guided else 0)
        count = len(prompts)
        while True:
            # Inside the context only while computing: a generator must not leak it to its caller.
            with torch.inference_mode(), autocast(self.precision, self.device):
                hidden = self.model(batch.to(self.device), cache)
                logits = self.model.logits(hidden[place[0], place[1]]).float()
                ids = self._choose(logits, live, sampling, guided, random)
            for sequence, token in zip(live, ids, strict=True):
                yield from self._advance(sequence, token, sampling)
            live = [s for s in live if not s.done]
            if not live:
                return
            used = sorted({s.row for s in live})
            if len(used) <= count // 2:  # finished rows leave the batch once they are the majority
                keep = used + [row + count for row in used] if guided else used
                cache.select(torch.tensor(keep, device=self.device))
                for sequence in live:
                    sequence.row = used.index(sequence.row)
                count = len(used)
            batch, place = _next_batch(live, count, guided)

    def _last_tokens(
        self, live: list[_Sequence], rows: list[Encoded], twins: int
    ) -> tuple[Tensor, Tensor]:
        """(rows, columns) of each sequence's last prompt token, then of its twin's; sets where
        the next token of each stands."""
        row_of, column_of = [], []
        for sequence in live:
            column = int(np.flatnonzero(rows[sequence.row].branch == sequence.branch)[-1])
            sequence.position = int(rows[sequence.row].position[column]) + 1
            row_of.append(sequence.row)
            column_of.append(column)
        for sequence in live if twins else ():
            twin = rows[sequence.row + twins]
            sequence.shift = len(twin) - sequence.position
            row_of.append(sequence.row + twins)
            column_of.append(len(twin) - 1)
        return torch.tensor(row_of), torch.tensor(column_of)

    def _choose(
        self,
        logits: Tensor,
        live: list[_Sequence],
        sampling: Sampling,
        guided: bool,
        random: torch.Generator,
    ) -> list[int]:
        if guided:
            drawing = torch.tensor([[s.drawing] for s in live], device=logits.device)
            plain, bare = logits.split(len(live))
            logits = torch.where(drawing, guide(plain, bare, sampling.guidance), plain)
        if self.vocabulary is not None:
            logits = logits.masked_fill(~self._allowed(live, sampling), float("-inf"))
        elif self.processor.template.marker < logits.shape[-1]:
            # Said, it would stand for a picture that is not there.
            logits[:, self.processor.template.marker] = float("-inf")
        return choose(logits, sampling, random).tolist()

    def _allowed(self, live: list[_Sequence], sampling: Sampling) -> Tensor:
        """[N V] bool: the grammar. Text until begin-of-image, then exactly codes_per_image codes,
        then end-of-image; a picture is begun only while one is still allowed."""
        vocabulary = self.vocabulary
        assert vocabulary is not None
        text, codes = vocabulary.allow_text(self.device), vocabulary.allow_codes(self.device)
        text[vocabulary.begin_image] = False
        begin, end = torch.zeros_like(text), torch.zeros_like(text)
        begin[vocabulary.begin_image], end[vocabulary.end_image] = True, True
        rows = []
        for s in live:
            if s.drawing:
                rows.append(codes if len(s.codes) < self.codes_per_image else end)
            elif sampling.draw_first and not s.images:
                rows.append(begin)
            else:
                rows.append(text | begin if s.images < sampling.max_images else text)
        return torch.stack(rows)

    def _advance(self, s: _Sequence, token: int, sampling: Sampling) -> Iterator[tuple[int, Piece]]:
        """Take a token in; yield what became known by it."""
        s.token = token
        s.position += 1
        if self.vocabulary is not None and token == self.vocabulary.begin_image:
            s.drawing, s.codes = True, []
        elif self.vocabulary is not None and token == self.vocabulary.end_image:
            s.drawing, s.images = False, s.images + 1
            picture = self.processor.codec.decode(torch.tensor(s.codes))
            s.done = s.images >= max(1, sampling.max_images) and sampling.draw_first
            held = self._held(s) if s.done else ""
            yield s.sample, Piece(held, picture, "stop" if s.done else None)
        elif s.drawing:
            s.codes.append(token)
        elif token in self.processor.template.stop:
            s.done = True
            yield s.sample, Piece(self._held(s), finish="stop")
        else:
            s.text.append(token)
            s.done = len(s.text) >= sampling.max_tokens
            whole = self.processor.template.decode(s.text)
            # An unfinished character decodes to U+FFFD: hold it back until its bytes are complete.
            fresh = "" if whole.endswith("�") and not s.done else whole[len(s.shown) :]
            s.shown += fresh
            if fresh or s.done:
                yield s.sample, Piece(fresh, finish="length" if s.done else None)

    def _held(self, s: _Sequence) -> str:
        """What was held back as an unfinished character, now that the reply is over."""
        return self.processor.template.decode(s.text)[len(s.shown) :]


def _next_batch(
    live: list[_Sequence], rows: int, guided: bool
) -> tuple[Batch, tuple[Tensor, Tensor]]:
    """The tokens just chosen, one column a branch, and where each sequence stands in it."""
    used: dict[int, int] = {}
    columns = []
    for s in live:
        columns.append(used.get(s.row, 0))
        used[s.row] = columns[-1] + 1
    row = torch.tensor([s.row for s in live])
    column = torch.tensor(columns)
    place = (row, column)
    position = torch.tensor([s.position - 1 for s in live])
    told = torch.tensor([[s.token for s in live], [s.branch for s in live]])
    if guided:  # the twins are told the same, each at its own position
        place = (torch.cat([row, row + rows]), column.repeat(2))
        position = torch.cat([position, position + torch.tensor([s.shift for s in live])])
        told = told.repeat(1, 2)
    blank = torch.zeros(2 * rows if guided else rows, max(used.values()), dtype=torch.long)

    def spread(values: Tensor, filling: int = 0) -> Tensor:
        return (blank + filling).index_put(place, values)

    ids, branch, at = spread(told[0]), spread(told[1]), spread(position)
    segment = spread(torch.zeros_like(position), -1)
    return Batch(ids, torch.full_like(ids, IGNORE), segment, at, branch, at), place


def chunks(items: Sequence[T], tokens: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of items whose padded size stays within `tokens` (at least one each)."""
    chunk: list[T] = []
    longest = 0
    for item in items:
        longest_with = max(longest, length(item))
        if chunk and longest_with * (len(chunk) + 1) > tokens:
            yield chunk
            chunk, longest_with = [], length(item)
        chunk.append(item)
        longest = longest_with
    if chunk:
        yield chunk
