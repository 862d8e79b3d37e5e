"""POST /v1/embeddings: unit vectors of texts and images in one space (contrastive encoders)."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import PIL.Image
import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from chiasm.serve.body import read
from chiasm.serve.errors import ApiError
from chiasm.serve.limits import Holding, Limits
from chiasm.serve.media import check_url, image_of
from chiasm.serve.refusals import Busy
from chiasm.serve.schema import EmbeddingRequest, Part
from chiasm.serve.server import Served, Server
from chiasm.vision.dual import Dual

Item = str | PIL.Image.Image


def embedding_routes(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        with server.budget.request() as holding:
            asked = await read(request, EmbeddingRequest, server.limits, holding, server.run)
            served = server.find(asked.model, "embeddings")
            _check(asked, server.limits)
            items = await server.run(_items, asked, server.limits, holding)
            vectors = await _on_its_thread(server, served, items)
            return JSONResponse(await server.run(_answer, asked, vectors))

    return router


async def _on_its_thread(server: Server, served: Served, items: list[Item]) -> Tensor:
    if served.queued >= server.waiting:
        raise Busy(2)
    served.queued += 1
    try:
        assert served.dual is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(served.thread, embed, served.dual, items)
    finally:
        served.queued -= 1


def embed(dual: Dual, items: list[Item]) -> Tensor:
    """Unit vectors [N D] of texts and images, in order."""
    texts = [i for i, item in enumerate(items) if isinstance(item, str)]
    images = [i for i, item in enumerate(items) if not isinstance(item, str)]
    found: dict[int, Tensor] = {}
    if texts:
        found |= zip(texts, dual.embed_texts([str(items[i]) for i in texts]), strict=True)
    if images:
        chosen = [item for item in items if not isinstance(item, str)]
        found |= zip(images, dual.embed_images(chosen), strict=True)
    return torch.stack([found[i] for i in range(len(items))])


def _check(asked: EmbeddingRequest, limits: Limits) -> None:
    if len(asked.input) > limits.texts:
        raise ApiError(
            400, f"{len(asked.input)} inputs, more than the {limits.texts} allowed", "input"
        )
    images = 0
    for i, item in enumerate(asked.input):
        if isinstance(item, Part):
            if item.image_url is not None:
                check_url(item.image_url.url, limits, f"input.{i}")
                images += 1
            elif item.text is None:
                raise ApiError(400, f"a part of type '{item.type}' is not read", f"input.{i}")
        if item == "":
            raise ApiError(400, "an empty text has no embedding", f"input.{i}")
    if images > limits.images:
        raise ApiError(400, f"{images} images, more than the {limits.images} allowed", "input")


def _items(asked: EmbeddingRequest, limits: Limits, holding: Holding) -> list[Item]:
    items: list[Item] = []
    for i, item in enumerate(asked.input):
        if isinstance(item, str):
            items.append(item)
        elif item.image_url is not None:
            image = image_of(item.image_url.url, limits, holding, f"input.{i}")
            items.append(image.load())
        else:
            items.append(item.text or "")
    return items


def _answer(asked: EmbeddingRequest, vectors: Tensor) -> dict:
    if asked.dimensions not in (None, vectors.shape[1]):
        raise ApiError(
            400, f"this model's embeddings have {vectors.shape[1]} dimensions", "dimensions"
        )
    rows = vectors.float().cpu().numpy().astype(np.float32)
    as_text = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.tobytes()).decode() if as_text else row.tolist(),
        }
        for i, row in enumerate(rows)
    ]
    # The encoders cut texts to their context, so words stand for tokens here.
    tokens = sum(len(item.split()) for item in asked.input if isinstance(item, str))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}
