"""POST /v1/attributions: which parts of the images a reply depends on (generation/attribution.py).
Ours, not OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chiasm.core import aliases
from chiasm.generation.attribution import Look, look
from chiasm.serve import conversation
from chiasm.serve.body import read
from chiasm.serve.media import data_url
from chiasm.serve.schema import LookRequest
from chiasm.serve.server import Server
from chiasm.serve.waiting import unless_gone


def look_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/attributions")
    async def attributions(request: Request) -> Response:
        with server.budget.request() as holding:
            asked = await read(request, LookRequest, server.limits, holding, server.run)
            engine = server.talker(asked.model)
            conversation.check(asked, server.limits)
            respond = engine.respond
            clips = respond.processor.clips
            sample = await server.run(conversation.sample_of, asked, clips, server.limits, holding)
            known = engine.call(lambda: look(respond.model, respond.processor, sample, asked.reply))
            found = await unless_gone(request, asyncio.wrap_future(known))
            return JSONResponse(await server.run(_answer, found))

    for old, new in aliases.ROUTES.items():
        if new == "/v1/attributions":
            router.post(old, deprecated=True)(attributions)
    return router


def _answer(looks: Sequence[Look]) -> dict:
    data = [
        {
            "index": number,
            "image_url": {"url": data_url(each.shown())},
            "share": [[round(float(place), 5) for place in row] for row in each.share],
        }
        for number, each in enumerate(looks)
    ]
    return {"object": "list", "data": data}
