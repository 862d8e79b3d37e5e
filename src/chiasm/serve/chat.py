"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chiasm.generation.image_token_fsm import Drawn
from chiasm.serve import conversation
from chiasm.serve.body import read
from chiasm.serve.engine import Engine
from chiasm.serve.errors import as_api_error, event_of
from chiasm.serve.job import Update, Usage
from chiasm.serve.media import data_url
from chiasm.serve.replies import Replies, collect
from chiasm.serve.schema import ChatRequest
from chiasm.serve.server import Server
from chiasm.serve.sketch import sketch
from chiasm.serve.waiting import EventStream, unless_gone
from chiasm.serve.wire import ChatWire, event, image_part


def chat_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        with ExitStack() as stack:
            holding = stack.enter_context(server.budget.request())
            asked = await read(request, ChatRequest, server.limits, holding, server.run)
            engine, constraints = server.talker(asked.model), server.constraints(asked.model)
            conversation.check(asked, server.limits)
            clips = engine.respond.processor.clips
            sample = await server.run(conversation.sample_of, asked, clips, server.limits, holding)
            jobs = conversation.jobs_of(asked, sample, engine, server.limits)
            for job in jobs:
                job.rule = await server.run(constraints.rule, asked.response_format)
            if asked.logprobs:
                await server.run(constraints.tokenizer)
            replies = Replies(engine, jobs)
            replies.submit()
            stack.callback(replies.cancel)
            wire = ChatWire(asked.model, constraints.spell)
            if not asked.stream:
                whole = await unless_gone(request, collect(replies))
                said = await server.run(wire.completion, whole, bool(asked.logprobs))
                return JSONResponse(said)
            updates = aiter(replies)
            # An error before the first token still has a status of its own.
            first = await unless_gone(request, anext(updates))
            if first[1].error is not None:
                raise as_api_error(first[1].error)
            show = partial(_sketched, engine)
            events = _events(_from(first, updates), asked, wire, server, show)
            return EventStream(events, stack.pop_all().close)

    return router


def _sketched(engine: Engine, drawn: Drawn) -> str:
    return data_url(sketch(engine.respond, drawn))


async def _from(
    first: tuple[int, Update], rest: AsyncIterator[tuple[int, Update]]
) -> AsyncIterator[tuple[int, Update]]:
    yield first
    async for pair in rest:
        yield pair


async def _events(
    updates: AsyncIterator[tuple[int, Update]],
    asked: ChatRequest,
    wire: ChatWire,
    server: Server,
    shown: Callable[[Drawn], str],
) -> AsyncIterator[str]:
    """The chunks of a stream: roles, then what becomes known, usage where it is wanted. shown: a
    data URL of an image under way."""
    count = asked.n or 1
    usages, images = [Usage()] * count, [0] * count
    for number in range(count):
        yield event(wire.chunk(number, {"role": "assistant", "content": ""}))
    async for number, update in updates:
        if update.error is not None:
            yield event_of(update.error)
            return
        if update.drawn is not None and asked.progress:
            drawing: dict = dict(zip(("done", "of"), update.drawn, strict=True))
            if update.sketch is not None:
                drawing["image_url"] = {"url": await server.run(shown, update.sketch)}
            yield event(wire.chunk(number, {"drawing": drawing}))
        if update.text or update.scores:
            scores = wire.logprobs(update.scores) if asked.logprobs else None
            yield event(wire.chunk(number, {"content": update.text}, logprobs=scores))
        if update.image is not None:
            part = await server.run(image_part, update.image, images[number])
            images[number] += 1
            yield event(wire.chunk(number, {"images": [part]}))
        if update.finish is not None:
            usages[number] = update.usage or usages[number]
            yield event(wire.chunk(number, {}, update.finish))
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield event(wire.usage_chunk(usages))
    yield "data: [DONE]\n\n"
