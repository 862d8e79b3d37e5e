"""One thread owns a model; requests join its batch and leave it at every step.

waiting   [job job]                   bounded: Busy when full
admit     prompt (and its twin) computed alone, then a slot each in the cache
step      one token for every slot: text and images, guided or not, side by side
leave     done, cancelled or late: its slots are free before the next step
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from chiasm.core.batch import pack
from chiasm.core.device import moved_tensor, pinned
from chiasm.core.errors import ChiasmError, NotGenerativeError
from chiasm.generation.generator import Generator
from chiasm.generation.sampling import guide
from chiasm.generation.sequence import Feed, Reply, moved
from chiasm.serve.choice import chosen
from chiasm.serve.job import Job, Score, Update
from chiasm.serve.prefixes import Prefixes
from chiasm.serve.recent import Recent, RecentFeatures
from chiasm.serve.refusals import Busy, Late, TooLongError

log = logging.getLogger("chiasm.serve")
T = TypeVar("T")


class Engine:
    """Answers jobs with a Generator's model by its rules (generation/generator.py), so that a reply
    is what the Generator gives for that sample alone.

    slots: rows computed together; a guided drawing takes two. waiting: jobs that may wait beside
    them. remember: bytes of images' encodings kept, and as many of prompts' keys and values.
    metrics: a server's Metrics.
    """

    def __init__(
        self,
        name: str,
        respond: Generator,
        slots: int = 16,
        waiting: int = 64,
        remember: float = 256e6,
        metrics: Any = None,
    ):
        self.name, self.respond, self.limit = name, respond, waiting
        self.metrics: Any = metrics or Uncounted()
        # A guided drawing needs two, or it would wait for ever.
        self.cache = respond.steps.new_slots(max(slots, 2) if respond.codes_per_image else slots)
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0  # of a request, a moving average
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        if hasattr(respond.model, "recent"):
            respond.model.recent = RecentFeatures(remember)
        respond.processor.slots = Recent(remember, _weight)
        self.prefixes = Prefixes(remember, self._is_image)

    @property
    def draws(self) -> bool:
        return self.respond.codes_per_image > 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self.respond.model.eval()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs still under way hear an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.alive:
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Raises Busy when as many wait as may, NotGenerativeError for images of a model that
        cannot draw."""
        if (job.sampling.draw_first or job.sampling.max_images) and not self.draws:
            raise NotGenerativeError(
                f"the model '{self.name}' reads images but cannot draw them; "
                "ask a unified model (see /v1/models)"
            )
        with self._changed:
            if self._stopping:
                raise Busy(5)
            if len(self._waiting) >= self.limit:
                ahead = len(self._waiting) / max(1, len(self._active))
                raise Busy(max(1, min(60, round(self._seconds * ahead))))
            self._waiting.append(job)
            self._changed.notify()
        self.metrics.waiting.labels(self.name).set(len(self._waiting))

    def call(self, act: Callable[[], T]) -> Future[T]:
        """Call a function on the thread that owns the model, between two steps. Raises Busy when as
        many wait for that as jobs may; a future that is cancelled in time costs nothing."""
        errand: Future[T] = Future()
        with self._changed:
            if self._stopping or len(self._errands) >= self.limit:
                raise Busy(5)
            self._errands.append((act, errand))
            self._changed.notify()
        return errand

    def cancel(self, job: Job) -> None:
        """Nobody listens any more: its slots are free before the next step."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            self._serve()

    def drain(self) -> None:
        """Answer all that waits in the caller's thread, for an engine that was not started. What is
        computed together is then the same every time."""
        self.respond.model.eval()
        with torch.inference_mode():
            while self._waiting or self._active:
                self._turn()

    def _turn(self) -> None:
        """One step of the batch; jobs leave and join it before."""
        try:
            self._drop()
            self._admit()
            if self._active:
                self._step()
        except Exception as error:
            log.exception("engine %s: a step failed; its requests are told", self.name)
            self.cache = self.respond.steps.new_slots(self.cache.slots)
            for job in list(self._active):
                job.slots = []  # of a cache that may be half written
                self._fail([job], error)

    def _serve(self) -> None:
        """Until the engine is stopped."""
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._errands or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    break
                errand = self._errands.popleft() if self._errands else None
            if errand is not None:
                _do(*errand)
            self._turn()
        self._fail([*self._active, *self._waiting], Busy(5))
        for _, errand in self._errands:
            errand.cancel()

    def _drop(self) -> None:
        """Jobs nobody waits for, and those past their time."""
        now = time.monotonic()
        for job in list(self._active):
            if job.cancelled:
                self._leave(job, "cancelled")
            elif now > job.deadline:
                # What there is so far is worth more than an error.
                self._leave(job, "late")
                self._tell(job, Update(job.stop.rest(), finish="length", usage=job.usage))
        with self._changed:
            gone = [job for job in self._waiting if job.cancelled or now > job.deadline]
            for job in gone:
                self._waiting.remove(job)
        for job in gone:
            if not job.cancelled:
                self._tell(job, Update(error=Late("no row became free in time; try again later")))
            self.metrics.ended.labels(self.name, "cancelled" if job.cancelled else "late").inc()

    def _admit(self) -> None:
        """Compute prompts, in order of arrival, while there are slots; those under way wait for no
        more than the generator's budget of tokens."""
        computed = 0
        while computed < self.respond.tokens:
            with self._changed:
                if not self._waiting or self._rows(self._waiting[0]) > self.cache.free:
                    break
                job = self._waiting.popleft()
            try:
                self._start(job)
            except ChiasmError as error:
                self._fail([job], error)
            except Exception as error:
                log.exception("engine %s: a request could not be started", self.name)
                self._fail([job], error)
            computed += job.prompt - job.cached
        self.metrics.waiting.labels(self.name).set(len(self._waiting))

    def _draws(self, job: Job) -> bool:
        return bool(job.sampling.draw_first or job.sampling.max_images)

    def _rows(self, job: Job) -> int:
        return 1 + (self._draws(job) and job.sampling.guidance != 1.0)

    def _start(self, job: Job) -> None:
        """Encode and compute a prompt; its first token."""
        ((prompt, _),) = self.respond.processor.prompts([job.sample])
        job.prompt, job.prompt_images = len(prompt), int(self._is_image(prompt.input_ids).sum())
        job.sampling = sampling = replace(job.sampling, max_tokens=self._room(job))
        grammar = self.respond.grammar
        if grammar is not None and grammar.vocabulary.mask is not None and self._draws(job):
            self._paint(job)
            return
        job.random = torch.Generator(device=self.respond.device).manual_seed(sampling.seed)
        job.reply = reply = Reply(0, 0, 0, len(prompt))
        if grammar is not None:
            room = self.respond.processor.max_length - len(prompt)
            reply.state = grammar.start(sampling, job.edit, room)
        rows, cache = [prompt], None
        if self._rows(job) > 1:
            rows.append(self.respond.processor.unconditional(job.sample))
            reply.shift = len(rows[1]) - len(prompt)
        else:
            rows[0], cache = self.prefixes.split(prompt)
        job.cached = len(prompt) - len(rows[0])
        cache = self.respond.model.new_cache() if cache is None else cache
        batch, device = pack([[encoded] for encoded in rows]), self.respond.device
        width = batch.input_ids.shape[1]
        last = np.array([row * width + len(own) - 1 for row, own in enumerate(rows)])
        with self.respond.computing():
            last, marks = moved([last, _marks([reply])], device)
            hidden = self.respond.model(batch.to(device), cache).flatten(0, 1)
            logits = self.respond.model.logits(hidden[last]).float()
            job.slots = self.cache.admit(cache)
            if len(rows) == 1:
                self.prefixes.keep(prompt, cache)
            self._active.append(job)
            self._choose([job], logits[:1], logits[1:], marks)
        now = time.monotonic()
        self.metrics.first_token.labels(self.name).observe(now - job.began)
        self.metrics.prompt_tokens.labels(self.name).inc(job.prompt)
        self.metrics.cached_tokens.labels(self.name).inc(job.cached)

    def _paint(self, job: Job) -> None:
        """A reply of a model that draws all codes of an image at once: alone, not step by step."""
        for _, piece in self.respond([job.sample], job.sampling, [job.edit]):
            late = time.monotonic() > job.deadline
            finish = piece.finish or ("length" if late else None)
            usage = job.usage if finish else None
            self._tell(job, Update(piece.text, piece.image, finish=finish, usage=usage))
            if job.cancelled or late:
                break
        self.metrics.ended.labels(self.name, "cancelled" if job.cancelled else "done").inc()

    def _room(self, job: Job) -> int:
        """How many text tokens the reply may have: as asked, within the model's context."""
        images = max(job.sampling.max_images, int(job.sampling.draw_first))
        grammar = self.respond.grammar
        drawn = images * max(map(grammar.length, grammar.grids)) if images and grammar else 0
        most = self.respond.processor.max_length
        room = most - job.prompt - drawn
        if room < 1:
            raise TooLongError(
                f"the prompt has {job.prompt} tokens, which of the model's {most} leaves no room "
                "for a reply; shorten it"
            )
        return min(job.sampling.max_tokens or room, room)

    def _is_image(self, ids: np.ndarray) -> np.ndarray:
        """Which of some ids [n] stand for images."""
        vocabulary = self.respond.processor.codec.vocabulary
        if vocabulary is not None:
            return vocabulary.is_code(torch.from_numpy(ids)).numpy()
        return ids == self.respond.processor.template.marker

    def _step(self) -> None:
        """One token for every reply under way."""
        jobs = list(self._active)
        replies = [job.reply for job in jobs if job.reply is not None]
        columns = np.zeros((4, len(self.cache.held), 1), np.int64)
        for job, reply in zip(jobs, replies, strict=True):
            for slot, shift in zip(job.slots, (0, reply.shift), strict=False):
                columns[0, slot.number] = job.last
                columns[3, slot.number] = reply.position - 1 + shift
        slots = [job.slots[0] for job in jobs] + [job.slots[1] for job in jobs if job.slots[1:]]
        feed = Feed(columns, np.array([(slot.number, 0) for slot in slots]))
        with self.respond.computing(step=True):
            logits, (marks,) = self.respond.steps.logits(feed, self.cache, [_marks(replies)])
            self._choose(jobs, logits[: len(jobs)], logits[len(jobs) :], marks)
        self.metrics.steps.labels(self.name).inc()
        self.metrics.active.labels(self.name).set(len(self.cache.held))

    def _choose(self, jobs: list[Job], plain: Tensor, bare: Tensor, marks: Tensor) -> None:
        """Tokens from logits [N V] of jobs and [M V] of the twins of those that have one; marks
        [N]: the grammar's, on the device."""
        replies = [job.reply for job in jobs if job.reply is not None]
        twinned = [i for i, job in enumerate(jobs) if len(job.slots) > 1]
        for twin, i in zip(bare, twinned, strict=True):
            if replies[i].drawing:
                plain[i] = guide(plain[i], twin, jobs[i].sampling.guidance)
        logits = self._permit(plain, jobs, replies, marks)
        vocabulary = self.respond.processor.codec.vocabulary
        first = 0 if vocabulary is None else vocabulary.first_code
        found = chosen(
            [(job, reply) for job, reply in zip(jobs, replies, strict=True)], logits, first
        )
        for job, reply, (token, score) in zip(jobs, replies, found, strict=True):
            try:
                self._take(job, reply, token, score)
            except Exception as error:
                log.exception("engine %s: a reply failed", self.name)
                self._fail([job], error)

    def _permit(
        self, logits: Tensor, jobs: list[Job], replies: list[Reply], marks: Tensor
    ) -> Tensor:
        """-inf where the grammar of images or a job's own rule forbids."""
        grammar, marker = self.respond.grammar, self.respond.processor.template.marker
        if grammar is not None:
            told = tuple(_marks(replies).tolist())
            logits = logits.masked_fill(grammar.forbid(told, marks), float("-inf"))
        elif marker < logits.shape[-1]:
            logits[:, marker] = float("-inf")
        for i, job in enumerate(jobs):
            if job.rule is not None:
                allowed = pinned(job.rule.allowed(logits.shape[-1]), logits.device)
                allowed = moved_tensor(allowed, logits.device)
                logits[i] = logits[i].masked_fill(~allowed, float("-inf"))
        return logits

    def _take(self, job: Job, reply: Reply, token: int, score: Score | None) -> None:
        words, inside, job.last = len(reply.text), reply.drawing, token
        job.sampled.append((token, reply.state is None or reply.state.allowed() >= 0))
        if job.rule is not None:
            job.rule.take(token)
        pieces = self.respond.shown(list(self.respond.advance(reply, token, job.sampling)))
        job.tokens += 1
        code = inside and self._is_code(token)
        job.drawn_here = job.drawn_here + code if inside else 0
        job.drawn += code
        if score is not None and len(reply.text) > words:
            job.scores.append(score)
        drawing = (job.drawn_here, self.respond.codes_per_image) if reply.drawing else None
        sketch = reply.state.whole_rows() if code and reply.state is not None else None
        updates = [Update(drawn=drawing, sketch=sketch)] if drawing and not pieces else []
        stopped = False
        for piece in pieces:
            text, stopped = job.stop.take(piece.text)
            finish = "stop" if stopped else piece.finish
            if (finish and not stopped) or piece.image is not None:
                text += job.stop.rest()
            scores, job.scores = tuple(job.scores), []
            if text or piece.image is not None or finish or scores:
                usage = job.usage if finish else None
                updates.append(Update(text, piece.image, scores, finish=finish, usage=usage))
            if finish:
                break
        now = time.monotonic()
        if job.last_token:
            self.metrics.between_tokens.labels(self.name).observe(now - job.last_token)
        job.last_token = now
        if reply.done or stopped:
            self._leave(job, "done")  # counted before anyone can have heard of it
        for update in updates:
            self._tell(job, update)

    def _is_code(self, token: int) -> bool:
        vocabulary = self.respond.processor.codec.vocabulary
        return vocabulary is not None and vocabulary.text <= token < vocabulary.size

    def _tell(self, job: Job, update: Update) -> None:
        if job.cancelled:
            return
        try:
            job.deliver(update)
        except RuntimeError:  # its event loop is closed
            job.cancelled = True

    def _leave(self, job: Job, how: str) -> None:
        for slot in job.slots:
            self.cache.release(slot)
        job.slots = []
        self._active.remove(job)
        took = time.monotonic() - job.began
        self._seconds += 0.2 * (took - self._seconds)
        self.metrics.ended.labels(self.name, how).inc()
        self.metrics.text_tokens.labels(self.name).inc(job.tokens - job.drawn)
        self.metrics.image_tokens.labels(self.name).inc(job.drawn)
        self.metrics.active.labels(self.name).set(len(self.cache.held))

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            if job in self._active:
                self._leave(job, "failed")
            else:
                self.metrics.ended.labels(self.name, "failed").inc()
            self._tell(job, Update(error=error))


class Uncounted:
    """Metrics where nobody reads them: chat in a terminal needs none of a server's packages."""

    def __getattr__(self, _name: str) -> Uncounted:
        return self

    def __call__(self, *_anything: Any, **_named: Any) -> Uncounted:
        return self


def _do(act: Callable[[], T], errand: Future[T]) -> None:
    if not errand.set_running_or_notify_cancel():
        return
    try:
        errand.set_result(act())
    except Exception as error:  # whoever waits for it hears
        errand.set_exception(error)


def _marks(replies: Sequence[Reply]) -> np.ndarray:
    """[N] what the grammar says of each reply's next token; 0 of models that cannot draw."""
    return np.array([0 if r.state is None else r.state.allowed() for r in replies], np.int64)


def _weight(slot) -> float:
    return slot.input_ids.nbytes + (0 if slot.image_patches is None else slot.image_patches.nbytes)
