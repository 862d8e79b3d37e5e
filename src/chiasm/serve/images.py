"""POST /v1/images/generations and /v1/images/edits"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from chiasm.core.sample import Sample, user
from chiasm.generation.edit import inpaint
from chiasm.generation.generator import Generator
from chiasm.generation.image_token_fsm import Edit
from chiasm.serve.body import read
from chiasm.serve.conversation import choices, sampling_of, seeded
from chiasm.serve.engine import Engine
from chiasm.serve.errors import ApiError
from chiasm.serve.job import Job
from chiasm.serve.limits import Holding, Limits
from chiasm.serve.media import check_url, check_urls, data_url, image_of, mask_of, png
from chiasm.serve.replies import Replies, Whole, added, collect
from chiasm.serve.schema import EditRequest, ImageRequest
from chiasm.serve.server import Server
from chiasm.serve.waiting import unless_gone


def image_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        with server.budget.request() as holding:
            asked = await read(request, ImageRequest, server.limits, holding, server.run)
            engine = server.talker(asked.model, "images")
            sample = Sample((user(asked.prompt),), "request")
            return await _draw(request, server, asked, engine, sample)

    @router.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        with server.budget.request() as holding:
            asked = await read(request, EditRequest, server.limits, holding, server.run)
            engine = server.talker(asked.model, "images")
            _check(asked, server.limits)
            sample, edit = await server.run(
                _to_change, asked, engine.respond, server.limits, holding
            )
            return await _draw(request, server, asked, engine, sample, edit)

    return router


async def _draw(
    request: Request,
    server: Server,
    asked: ImageRequest,
    engine: Engine,
    sample: Sample,
    edit: Edit | None = None,
) -> Response:
    count = choices(asked, server.limits)
    sampling = sampling_of(asked, True, max_tokens=1, max_images=1, draw_first=True)
    deadline = time.monotonic() + server.limits.seconds
    jobs = [
        Job(sample, one, lambda _: None, deadline=deadline, edit=edit)
        for one in seeded(sampling, count)
    ]
    replies = Replies(engine, jobs)
    replies.submit()
    whole = await unless_gone(request, collect(replies))
    return JSONResponse(await server.run(_answer, asked, whole))


def _check(asked: EditRequest, limits: Limits) -> None:
    check_urls([(url, "image") for url in asked.image], limits, "image")
    if asked.mask is not None and len(asked.image) > 1:
        raise ApiError(400, "a mask goes with one image", "mask")
    if asked.mask is not None:
        check_url(asked.mask, limits, "mask")


def _to_change(
    asked: EditRequest, respond: Generator, limits: Limits, holding: Holding
) -> tuple[Sample, Edit | None]:
    """With a mask the words say what is to be seen and the rest of the image is given; without,
    the model is shown the images beside the words. Not for the event loop."""
    images = [image_of(url, limits, holding, "image") for url in asked.image]
    if asked.mask is None:
        return Sample((user(*images, asked.prompt),), "request"), None
    mask = mask_of(asked.mask, limits, holding, "mask")
    edit = inpaint(respond.processor.codec, images[0].load(), mask)
    return Sample((user(asked.prompt),), "request"), edit


def _answer(asked: ImageRequest, replies: list[Whole]) -> dict:
    images = [image for reply in replies for image in reply.images]
    if len(images) < len(replies):
        raise ApiError(503, "the image took longer than this server allows", code="timeout")
    usage = added([reply.usage for reply in replies])
    url = asked.response_format == "url"
    return {
        "created": int(time.time()),
        "data": [{"url": data_url(p)} if url else {"b64_json": png(p)} for p in images],
        "output_format": "png",
        "size": "{}x{}".format(*images[0].size),
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
