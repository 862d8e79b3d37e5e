"""From the engine's thread to a request's coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import PIL.Image

from chiasm.serve.engine import Engine
from chiasm.serve.errors import as_api_error
from chiasm.serve.job import Job, Score, Update, Usage


class Replies:
    """The jobs of one request. Iterating gives (number of the job, update) until all have ended."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]):
        self.engine, self.jobs = engine, jobs
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number, job in enumerate(jobs):
            job.deliver = partial(self._deliver, loop, number)

    def _deliver(self, loop: asyncio.AbstractEventLoop, number: int, update: Update) -> None:
        loop.call_soon_threadsafe(self._updates.put_nowait, (number, update))

    def submit(self) -> None:
        """All or none. Raises Busy, NotGenerativeError."""
        try:
            for job in self.jobs:
                self.engine.submit(job)
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        for job in self.jobs:
            self.engine.cancel(job)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Update]]:
        left = len(self.jobs)
        while left:
            number, update = await self._updates.get()
            left -= update.last
            yield number, update


@dataclass
class Whole:
    """A reply that has ended."""

    text: str = ""
    images: list[PIL.Image.Image] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    finish: str = "stop"
    usage: Usage = field(default_factory=Usage)

    def take(self, update: Update) -> None:
        """Raises the update's error as an ApiError."""
        if update.error is not None:
            raise as_api_error(update.error)
        self.text += update.text
        self.scores += update.scores
        if update.image is not None:
            self.images.append(update.image)
        self.finish = update.finish or self.finish
        self.usage = update.usage or self.usage


async def collect(replies: Replies) -> list[Whole]:
    """All replies, whole. The first error ends them all."""
    found = [Whole() for _ in replies.jobs]
    try:
        async for number, update in replies:
            found[number].take(update)
    finally:
        replies.cancel()
    return found


def added(usages: Sequence[Usage]) -> Usage:
    """Of several replies to one prompt, which counts once."""
    return Usage(
        usages[0].prompt,
        usages[0].prompt_images,
        sum(u.reply for u in usages),
        sum(u.reply_images for u in usages),
        usages[0].cached,
    )
