"""Replies, token by token, for both routes.

Rows are prompts; questions about one picture are branches of one row, so the picture is computed
once. Every step adds one token to each unfinished branch of every row. With guidance each row has a
twin without the condition that is fed the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Batch, Encoded, pack
from chiasm.core.errors import NotGenerativeError
from chiasm.core.protocols import Piece, Sampling
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.infer.grammar import Drawn, Edit, Grammar
from chiasm.infer.paint import paint
from chiasm.infer.replies import Reply, next_batch
from chiasm.infer.sampling import choose, guide
from chiasm.nn.precision import Precision, autocast

T = TypeVar("T")


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
        self.codes_per_image = processor.codec.codes_per_image
        self.device = next(model.parameters()).device
        self.grammar: Grammar | None = None
        if processor.codec.vocabulary is not None:
            codec = processor.codec
            self.grammar = Grammar(codec.vocabulary, codec.grids, self.device)  # type: ignore[arg-type]

    def __call__(
        self,
        samples: Sequence[Sample],
        sampling: Sampling,
        edits: Sequence[Edit | None] | None = None,
    ) -> Iterator[tuple[int, Piece]]:
        """Yields (index of the sample, piece) as soon as a piece is known; the last piece of a
        reply has `finish` set. edits: what is given of each reply's first picture. Raises
        NotGenerativeError if a picture is wanted of a model that cannot draw, DataError for a
        sample that cannot be encoded, ConfigError for a picture size that the model has not."""
        if (sampling.draw_first or sampling.max_images) and not self.codes_per_image:
            raise NotGenerativeError(
                "this model reads pictures but cannot draw them; use a unified model"
            )
        self.model.eval()
        random = torch.Generator(device=self.device).manual_seed(sampling.seed)
        prompts = self.processor.prompts(samples)
        given = edits or [None] * len(samples)
        for chunk in chunks(prompts, self.tokens, lambda prompt: len(prompt[0])):
            yield from self._reply(chunk, samples, sampling, given, random)

    def _reply(
        self,
        prompts: list[tuple[Encoded, list[int]]],
        samples: Sequence[Sample],
        sampling: Sampling,
        edits: Sequence[Edit | None],
        random: torch.Generator,
    ) -> Iterator[tuple[int, Piece]]:
        rows = [encoded for encoded, _ in prompts]
        guided = sampling.guidance != 1.0 and bool(sampling.draw_first or sampling.max_images)
        if guided:
            rows += [self.processor.unconditional(samples[members[0]]) for _, members in prompts]
        live = [
            Reply(sample, row, branch + 1 if len(members) > 1 else 0, 0)
            for row, (_, members) in enumerate(prompts)
            for branch, sample in enumerate(members)
        ]
        count = len(prompts)
        place = self._last_tokens(live, rows, count if guided else 0)
        for s in live if self.grammar is not None else ():
            room = self.processor.max_length - s.position
            s.state = self.grammar.start(sampling, edits[s.sample], room)  # type: ignore[union-attr]
        cache = self.model.new_cache()
        batch = pack([[row] for row in rows])
        while True:
            # Inside the context only while computing: a generator must not leak it to its caller.
            with torch.inference_mode(), autocast(self.precision, self.device):
                logits = self._logits(batch, place, cache)
                ids = self._run(logits, live, count, cache, sampling, guided, random)
            for sequence, tokens in zip(live, ids, strict=True):
                for token in tokens:
                    yield from self._advance(sequence, token, sampling)
            painters = [s for s in live if not s.done and self._paints(s)]
            if painters:
                assert self.grammar is not None
                with torch.inference_mode(), autocast(self.precision, self.device):
                    ids = paint(
                        self.model, self.grammar, painters, count, cache, sampling, guided, random
                    )
                for sequence, tokens in zip(painters, ids, strict=True):
                    before = sequence.pending
                    for token in tokens:
                        yield from self._advance(sequence, token, sampling)
                    sequence.pending = [*before, *tokens]
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
            batch, place = next_batch(live, count, guided)

    def _logits(self, batch: Batch, place: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        """[n V] of the tokens at (rows, columns)."""
        hidden = self.model(batch.to(self.device), cache)
        return self.model.logits(hidden[place[0], place[1]]).float()

    def _last_tokens(
        self, live: list[Reply], rows: list[Encoded], twins: int
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

    def _run(
        self,
        logits: Tensor,
        live: list[Reply],
        rows: int,
        cache: Any,
        sampling: Sampling,
        guided: bool,
        random: torch.Generator,
    ) -> list[list[int]]:
        """The next tokens of each sequence, all of one number: one, or as many as the grammar
        knows what may come, which is the rest of a picture where all draw one."""
        marks = [[0] if s.state is None else s.state.ahead() for s in live]
        ahead = list(zip(*marks, strict=False))  # up to the shortest
        drawing = [s.drawing for s in live]
        chosen = [self._choose(logits, ahead[0], drawing, sampling, guided, random)]
        if len(ahead) > 1:
            for s in live:
                s.pending = [0]
            batch, place = next_batch(live, rows, guided)
            batch, place = batch.to(self.device), tuple(x.to(self.device) for x in place)
            for step, allowed in enumerate(ahead[1:]):
                told = chosen[-1].repeat(2) if guided else chosen[-1]
                ids = batch.ids.index_put(place, told)
                at = batch.position + step + 1
                logits = self._logits(replace(batch, ids=ids, position=at, block=at), place, cache)
                chosen.append(self._choose(logits, allowed, drawing, sampling, guided, random))
        return torch.stack(chosen, 1).tolist()

    def _choose(
        self,
        logits: Tensor,
        marks: Sequence[int],
        drawing: list[bool],
        sampling: Sampling,
        guided: bool,
        random: torch.Generator,
    ) -> Tensor:
        """ids [N] from logits [N V], or [2N V] with the twins'."""
        of_images = torch.tensor(drawing, device=logits.device)
        if guided:
            plain, bare = logits.split(len(drawing))
            logits = plain
            if any(drawing):
                logits = guide(plain, bare, sampling.guidance)
            if not all(drawing):
                logits = torch.where(of_images[:, None], logits, plain)
        if self.grammar is not None:
            logits = logits.masked_fill(~self.grammar.allow(marks), float("-inf"))
        elif self.processor.template.marker < logits.shape[-1]:
            # Said, it would stand for a picture that is not there.
            logits[:, self.processor.template.marker] = float("-inf")
        return choose(logits, sampling, random, of_images)

    def _advance(self, s: Reply, token: int, sampling: Sampling) -> Iterator[tuple[int, Piece]]:
        """Take a token in; yield what became known by it."""
        s.pending = [token]
        s.position += 1
        inside = s.drawing
        drawn = None if s.state is None else s.state.take(token)
        if drawn is not None and s.state is not None:
            s.done = s.state.done
            held = self._held(s) if s.done else ""
            yield s.sample, Piece(held, self._picture(drawn), "stop" if s.done else None)
        elif inside or s.drawing:
            return
        elif token in self.processor.template.stop:
            s.done = True
            yield s.sample, Piece(self._held(s), finish="stop")
        else:
            s.text.append(token)
            s.done = len(s.text) >= sampling.max_tokens
            whole = self.processor.template.decode(s.text)
            # An unfinished character decodes to U+FFFD: hold it back until its bytes are complete.
            fresh = "" if whole.endswith("\ufffd") and not s.done else whole[len(s.shown) :]
            s.shown += fresh
            if fresh or s.done:
                yield s.sample, Piece(fresh, finish="length" if s.done else None)

    def _paints(self, s: Reply) -> bool:
        """Whether the rest of its picture is drawn at once, by masked diffusion."""
        masked = self.grammar is not None and self.grammar.vocabulary.mask is not None
        return masked and s.state is not None and s.state.open

    def _picture(self, drawn: Drawn) -> PIL.Image.Image:
        ids = torch.tensor(drawn.ids)
        assert self.grammar is not None
        if not self.grammar.announced:
            return self.processor.codec.decode(ids)
        return self.processor.codec.decode(ids, drawn.grid)

    def _held(self, s: Reply) -> str:
        """What was held back as an unfinished character, now that the reply is over."""
        return self.processor.template.decode(s.text)[len(s.shown) :]


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
