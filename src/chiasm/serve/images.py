"""POST /v1/images/generations"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chiasm.core.sample import Sample, question
from chiasm.serve.body import read
from chiasm.serve.conversation import sampling_of, seeded
from chiasm.serve.errors import ApiError
from chiasm.serve.job import Job
from chiasm.serve.media import data_url, png
from chiasm.serve.replies import Replies, Whole, added, collect
from chiasm.serve.schema import ImageRequest
from chiasm.serve.server import Server
from chiasm.serve.waiting import unless_gone


def image_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        with server.budget.request() as holding:
            asked = await read(request, ImageRequest, server.limits, holding, server.run)
            engine = server.talker(asked.model, "images")
            count = asked.n or 1
            if count > server.limits.choices:
                raise ApiError(400, f"n: more than the {server.limits.choices} allowed", "n")
            sampling = sampling_of(asked, True, max_tokens=1, max_images=1, draw_first=True)
            sample = Sample((question(asked.prompt),), "request")
            jobs = [Job(sample, one, lambda _: None) for one in seeded(sampling, count)]
            for job in jobs:
                job.deadline = time.monotonic() + server.limits.seconds
            replies = Replies(engine, jobs)
            replies.submit()
            whole = await unless_gone(request, collect(replies))
            return JSONResponse(await server.run(_answer, asked, whole))

    return router


def _answer(asked: ImageRequest, replies: list[Whole]) -> dict:
    pictures = [picture for reply in replies for picture in reply.images]
    if len(pictures) < len(replies):
        raise ApiError(503, "the picture took longer than this server allows", code="timeout")
    usage = added([reply.usage for reply in replies])
    url = asked.response_format == "url"
    return {
        "created": int(time.time()),
        "data": [{"url": data_url(p)} if url else {"b64_json": png(p)} for p in pictures],
        "output_format": "png",
        "size": "{}x{}".format(*pictures[0].size),
        "usage": {
            "input_tokens": usage.prompt,
            "output_tokens": usage.reply,
            "total_tokens": usage.prompt + usage.reply,
            "input_tokens_details": {
                "text_tokens": usage.prompt - usage.prompt_images,
                "image_tokens": usage.prompt_images,
            },
        },
    }
