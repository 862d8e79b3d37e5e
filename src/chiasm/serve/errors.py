"""Errors as OpenAI's API words them. Nothing in them tells of paths or of this code."""

from __future__ import annotations

import json
import logging

from fastapi.responses import JSONResponse

from chiasm.core.errors import ChiasmError, DataError, NotGenerativeError
from chiasm.serve.refusals import Busy, Late, TooLongError

log = logging.getLogger("chiasm.serve")


class ApiError(ChiasmError):
    """An answer other than 200. param: the field that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry: int | None = None


KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def as_api_error(error: Exception) -> ApiError:
    """What a client hears of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        found = ApiError(429, str(error), code="server_busy")
        found.retry = error.seconds
        return found
    if isinstance(error, Late):
        found = ApiError(503, str(error), code="timeout")
        found.retry = 5
        return found
    if isinstance(error, TooLongError):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, NotGenerativeError):
        return ApiError(400, str(error), "model", "not_generative")
    if isinstance(error, DataError):
        return ApiError(400, str(error), "messages")
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def body_of(error: ApiError) -> dict:
    kind = KINDS.get(error.status, "invalid_request_error")
    said = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": said}


def response_of(error: Exception) -> JSONResponse:
    found = as_api_error(error)
    headers = {} if found.retry is None else {"Retry-After": str(found.retry)}
    if found.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(found), found.status, headers)


def event_of(error: Exception) -> str:
    """The last event of a stream that broke."""
    return f"data: {json.dumps(body_of(as_api_error(error)))}\n\n"
