"""Replies, token by token, for both routes.

Rows are prompts; questions about one image are branches of one row, so the image is computed
once. Every step adds one token to each unfinished branch of every row. With guidance each row has a
twin without the condition that is fed the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Encoded, pack
from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError, NotGenerativeError
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.generation.image_token_fsm import CODES, Drawn, Edit, Grammar
from chiasm.generation.maskgit import paint
from chiasm.generation.sampling import choose, guide
from chiasm.generation.sequence import Asked, Reply, Session, batch_of, moved, next_feed
from chiasm.generation.steps import Capture, Steps
from chiasm.nn.attention import TokenIndex
from chiasm.nn.cpu_linear import FewRows, Weights
from chiasm.nn.precision import Precision, autocast, round_weights
from chiasm.nn.static_cache import StaticCache

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """A StreamChunk whose image is still codes."""

    text: str = ""
    drawn: Drawn | None = None
    finish: str | None = None


class Generator:
    """Answers samples with a model: a `Generate` (core.protocols).

    tokens: budget of padded prompt tokens that are computed together. precision: "auto" computes in
    bfloat16 where that is faster; by default in the weights' own, in which replies do not depend on
    what else is in the batch. weights: what a language model's are held in (nn/cpu_linear.py); on
    an accelerator "bf16" rounds the model's own weights for good, and None leaves them as they are.
    Of rounded weights the precision is bfloat16.
    static: whether decode steps have fixed shapes (generation/steps.py), by default on every device
    but a CPU; capture: how they are captured, by default as CUDA graphs on CUDA.
    Whether it can draw is the codec's to say.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        tokens: int = 4096,
        precision: Precision = "none",
        weights: Weights | None = None,
        static: bool | None = None,
        capture: Capture | None = None,
    ):
        self.model, self.processor, self.tokens = model, processor, tokens
        self.codes_per_image = processor.codec.codes_per_image
        self.device = model_device(model)
        if self.device.type != "cpu":
            weights = self._rounded(weights)
        dtype = next(model.parameters()).dtype
        self.precision: Precision = "bfloat16" if dtype == torch.bfloat16 else precision
        self.steps = Steps(model, self.device, static, capture)
        self._few_rows = FewRows(model)
        make = getattr(model, "new_decoder", None)
        self._decoder = None if make is None else make(weights or "fp32")
        self.grammar: Grammar | None = None
        if processor.codec.vocabulary is not None:
            codec = processor.codec
            self.grammar = Grammar(codec.vocabulary, codec.grids, self.device)  # type: ignore[arg-type]
            self._lean = model.new_stepper()

    def _rounded(self, weights: Weights | None) -> Weights:
        """Round the weights on an accelerator if that is wanted. Raises ConfigError for what only
        CPUs multiply by."""
        if weights in ("int8", "int4"):
            raise ConfigError(
                f"weights {weights}: matrices are held in bytes on CPUs only, and this model is on "
                f"{self.device}; give bf16 or fp32"
            )
        if weights == "bf16":
            round_weights(self.model)
        return "fp32"

    def __call__(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        edits: Sequence[Edit | None] | None = None,
    ) -> Iterator[tuple[int, StreamChunk]]:
        """Yields (index of the sample, piece) as soon as a piece is known; the last piece of a
        reply has `finish` set. edits: what is given of each reply's first image. Raises
        NotGenerativeError if an image is wanted of a model that cannot draw, DataError for a
        sample that cannot be encoded, ConfigError for an image size that the model has not."""
        if (sampling.draw_first or sampling.max_images) and not self.codes_per_image:
            raise NotGenerativeError(
                "this model reads images but cannot draw them; use a unified model"
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
        sampling: SamplingParams,
        edits: Sequence[Edit | None],
        random: torch.Generator,
    ) -> Iterator[tuple[int, StreamChunk]]:
        rows = [encoded for encoded, _ in prompts]
        guided = sampling.guidance != 1.0 and bool(sampling.draw_first or sampling.max_images)
        if guided:
            rows += [self.processor.unconditional(samples[members[0]]) for _, members in prompts]
        live = [
            Reply(sample, row, branch + 1 if len(members) > 1 else 0, 0)
            for row, (_, members) in enumerate(prompts)
            for branch, sample in enumerate(members)
        ]
        place = self._last_tokens(live, rows, len(prompts) if guided else 0)
        for s in live if self.grammar is not None else ():
            room = self.processor.max_length - s.position
            s.state = self.grammar.start(sampling, edits[s.sample], room)  # type: ignore[union-attr]
        cache = self.model.new_cache()
        session = Session(live, len(prompts), guided, cache, sampling, random)
        batch = pack([[row] for row in rows])
        try:
            # Inside the context only while computing: a generator must not leak it to its caller.
            with self.computing():
                asked = self._ask(session)
                flat = place[:, 0] * batch.input_ids.shape[1] + place[:, 1]
                flat, *told = moved([flat, *asked.arrays], self.device)
                hidden = self.model(batch.to(self.device), cache).flatten(0, 1)
                logits = self.model.logits(hidden[flat]).float()
                session.cache = self.steps.take_over(
                    cache, batch.input_ids.shape[1] + self._most(sampling)
                )
                ids, fed = self._run(logits, session, asked.on(told))
            while True:
                yield from self._take(session.live, ids, sampling)
                for s, tokens in zip(session.live, ids, strict=True):
                    s.pending = tokens[fed:]
                yield from self._paint(session)
                with torch.inference_mode():
                    session.drop_finished()
                if not session.live:
                    break
                with self.computing(step=True):
                    asked = self._ask(session)
                    feed = next_feed(session.live, session.rows, guided)
                    logits, told = self.steps.logits(feed, session.cache, asked.arrays)
                    ids, fed = self._run(logits, session, asked.on(told))
        finally:
            self.steps.give_back(session.cache)

    @contextmanager
    def computing(self, step: bool = False) -> Iterator[None]:
        """How the model is run to generate: without gradients, as fast as replies allow. step: for
        the next tokens, not for prompts."""
        with torch.inference_mode(), autocast(self.precision, self.device), self._few_rows:
            if self._decoder is None:
                yield
                return
            self.model.decoder = self._decoder.of(step)
            try:
                yield
            finally:
                self.model.decoder = None

    def _paint(self, session: Session) -> Iterator[tuple[int, StreamChunk]]:
        """Draw the images that are begun, where they are drawn by masked diffusion."""
        if self.grammar is None or not self.grammar.painted:
            return
        painters = [s for s in session.live if s.state is not None and s.state.open]
        if not painters:
            return
        with self.computing():
            ids = paint(self.steps, self.grammar, painters, session)
        yield from self._take(painters, ids, session.sampling)
        for s, tokens in zip(painters, ids, strict=True):
            s.pending += tokens

    def _take(
        self, live: list[Reply], ids: list[list[int]], sampling: SamplingParams
    ) -> Iterator[tuple[int, StreamChunk]]:
        """Take each reply's next tokens in; yield what became known by them."""
        said = []
        for s, tokens in zip(live, ids, strict=True):
            for token in tokens:
                said += [(s.sample, each) for each in self.advance(s, token, sampling)]
        pieces = self.shown([each for _, each in said])
        yield from zip((sample for sample, _ in said), pieces, strict=True)

    def _last_tokens(self, live: list[Reply], rows: list[Encoded], twins: int) -> np.ndarray:
        """[N 2]: row and column of each sequence's last prompt token, then of its twin's; sets
        where the next token of each stands."""
        place = []
        for sequence in live:
            column = int(np.flatnonzero(rows[sequence.row].branch_ids == sequence.branch)[-1])
            sequence.position = int(rows[sequence.row].position_ids[column]) + 1
            place.append((sequence.row, column))
        for sequence in live if twins else ():
            twin = rows[sequence.row + twins]
            sequence.shift = len(twin) - sequence.position
            place.append((sequence.row + twins, len(twin) - 1))
        return np.array(place, np.int64)

    def _most(self, sampling: SamplingParams) -> int:
        """Tokens that a reply will have at most, or as many as are worth keeping room for."""
        images = max(sampling.max_images, int(sampling.draw_first))
        drawn = images * max(map(self.grammar.length, self.grammar.grids)) if self.grammar else 0
        return min(sampling.max_tokens + drawn, self.processor.max_length)

    def _ask(self, session: Session) -> Asked:
        """What the grammar says of the next tokens."""
        marks = [[0] if s.state is None else s.state.ahead() for s in session.live]
        ahead = list(zip(*marks, strict=False))  # up to the shortest
        return Asked(ahead, [s.drawing for s in session.live])

    def _run(self, logits: Tensor, session: Session, asked: Asked) -> tuple[list[list[int]], int]:
        """The next tokens of each sequence, all of one number: one, or as many as the grammar
        knows what may come, which is the rest of an image where all draw one. And how many of
        them the model has seen."""
        ahead = asked.ahead
        if all(s.state is not None and s.state.open for s in session.live):
            codes = logits[:, self.grammar.vocabulary.first_code :]  # type: ignore[union-attr]
            chosen = [self._choose_code(codes, asked, 0, session)]
        else:
            chosen = [self._choose(logits, asked, session)]
        # What has to come at the end of it is told without asking the model.
        free = 1 + max((n for n, row in enumerate(ahead[1:]) if max(row) >= 0), default=-1)
        if free:
            step = self._stepper(session, free)
            for number in range(free):
                told = step(number, chosen[-1])
                chosen.append(self._choose_code(told, asked, number + 1, session))
        ids = torch.stack(chosen, 1).tolist()
        forced = zip(*ahead[free + 1 :], strict=True) if len(ahead) > free + 1 else [()] * len(ids)
        return [own + [~m for m in rest] for own, rest in zip(ids, forced, strict=True)], free

    def _stepper(self, session: Session, steps: int) -> Callable[[int, Tensor], Tensor]:
        """A function of (number of the step, ids [N] just chosen) -> logits of the codes for the
        next ones, [N codes] or [2N codes] with the twins', for so many steps of images, in which
        nothing else changes: all but ids and positions is laid out once."""
        assert self.grammar is not None
        guided, first = session.guided, self.grammar.vocabulary.first_code
        feeds = [replace(s, pending=[0], position=s.position + 1) for s in session.live]
        feed = next_feed(feeds, session.rows, guided)
        if isinstance(session.cache, StaticCache):
            run = self.steps.repeated(feed, session.cache, steps)
            return lambda _, ids: run(ids.repeat(1 + guided))[:, first:]
        columns, place = moved([feed.columns, feed.flat()], self.device)
        batch, straight = batch_of(columns), feed.straight
        lean = self._lean.begin(batch, session.cache, steps) if straight else None
        if lean is not None:
            return lambda number, ids: lean(number, torch.cat([ids, ids]) if guided else ids)
        session.cache.foresee(
            TokenIndex(batch.segment_ids, batch.block_ids, batch.branch_ids), steps
        )

        def step(number: int, ids: Tensor) -> Tensor:
            told = ids.repeat(1 + guided)
            if not straight:
                told = batch.input_ids.reshape(-1).index_put((place,), told)
            at = batch.position_ids + number
            fed = replace(
                batch, input_ids=told.view(batch.input_ids.shape), position_ids=at, block_ids=at
            )
            hidden = self.model(fed, session.cache).flatten(0, 1)
            return self.model.logits(hidden if straight else hidden[place])[:, first:].float()

        return step

    def _choose_code(self, logits: Tensor, asked: Asked, number: int, session: Session) -> Tensor:
        """ids [N] from a stepper's logits, inside images: codes, or what the grammar forces."""
        assert self.grammar is not None
        if session.guided:
            own, twin = logits.chunk(2)
            logits = guide(own, twin, session.sampling.guidance)
        codes = choose(logits, session.sampling.of_images, session.random)
        ids = codes + self.grammar.vocabulary.first_code
        if all(mark == CODES for mark in asked.ahead[number]):
            return ids
        forced = asked.marks[number]
        return torch.where(forced < 0, ~forced, ids)

    def _choose(self, logits: Tensor, asked: Asked, session: Session) -> Tensor:
        """ids [N] from logits [N V], or [2N V] with the twins'."""
        drawing, of_images = asked.drawing, asked.of_images
        if session.guided:
            plain, bare = logits.split(len(drawing))
            logits = plain
            if any(drawing):
                logits = guide(plain, bare, session.sampling.guidance)
            if not all(drawing):
                logits = torch.where(of_images[:, None], logits, plain)
        if self.grammar is not None:
            forbidden = self.grammar.forbid(asked.ahead[0], asked.marks[0])
            logits = logits.masked_fill(forbidden, float("-inf"))
        elif self.processor.template.marker < logits.shape[-1]:
            # Said, it would stand for an image that is not there.
            logits[:, self.processor.template.marker] = float("-inf")
        return choose(logits, session.sampling, session.random, of_images)

    def advance(self, s: Reply, token: int, sampling: SamplingParams) -> Iterator[Said]:
        """Take a token in; yield what became known by it."""
        s.position += 1
        inside = s.drawing
        drawn = None if s.state is None else s.state.take(token)
        if drawn is not None and s.state is not None:
            s.done = s.state.done
            held = self._held(s) if s.done else ""
            yield Said(held, drawn, "stop" if s.done else None)
        elif inside or s.drawing:
            return
        elif token in self.processor.template.stop:
            s.done = True
            yield Said(self._held(s), finish="stop")
        else:
            s.text.append(token)
            s.done = len(s.text) >= sampling.max_tokens
            whole = self.processor.template.decode(s.text)
            # An unfinished character decodes to U+FFFD: hold it back until its bytes are complete.
            fresh = "" if whole.endswith("\ufffd") and not s.done else whole[len(s.shown) :]
            s.shown += fresh
            if fresh or s.done:
                yield Said(fresh, finish="length" if s.done else None)

    def shown(self, said: Sequence[Said]) -> list[StreamChunk]:
        """Chunks with their images, which are decoded together."""
        drawn = self.images([each.drawn for each in said if each.drawn])
        return [StreamChunk(s.text, next(drawn) if s.drawn else None, s.finish) for s in said]

    def images(self, drawn: Sequence[Drawn]) -> Iterator[PIL.Image.Image]:
        """What codes show."""
        if not drawn:
            return iter(())
        ids = [torch.tensor(each.ids) for each in drawn]
        return iter(self.processor.codec.decode_all(ids, [each.grid for each in drawn]))

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
