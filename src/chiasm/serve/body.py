"""A request's body, read within its limits and checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from chiasm.serve.errors import ApiError
from chiasm.serve.form import read_form
from chiasm.serve.limits import Holding, Limits

M = TypeVar("M", bound=BaseModel)


async def read(
    request: Request, kind: type[M], limits: Limits, holding: Holding, run: Callable
) -> M:
    """The body, JSON or a form, as `kind`; run: calls a function off the event loop. Raises Busy,
    and ApiError for one that is too large (before it is read, where its length is said), too slow
    or wrong."""
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said) > limits.body:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _whole(request, limits, holding)
    except TimeoutError:
        raise ApiError(
            408, f"the request's body did not come whole within {limits.body_seconds:g} s"
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    return await run(_parse, kind, data, request.headers.get("content-type", ""))


async def _whole(request: Request, limits: Limits, holding: Holding) -> bytes:
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > limits.body:
            raise _too_large(limits)
        holding.add(len(part))
        parts.append(part)
    return b"".join(parts)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the request's body has more than the {limits.body:,} bytes allowed")


def _parse(kind: type[M], data: bytes, content: str) -> M:
    try:
        if content.lower().startswith("multipart/form-data"):
            return kind.model_validate(read_form(data, content))
        return kind.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Names of union members stand among the places; a client does not know them.
        place = ".".join(str(p) for p in found["loc"] if not str(p).startswith(("list[", "func")))
        what = f"{place}: {found['msg']}" if place else f"the body: {found['msg']}"
        raise ApiError(400, what[:500], place[:200] or None) from None
