"""Before any route: the key, headers of every answer, and the count of requests."""

from __future__ import annotations

import hmac
from typing import Any

from chiasm.core import aliases
from chiasm.serve.errors import ApiError, response_of
from chiasm.serve.metrics import Metrics

OPEN = ("/health", "/ready")
"""Routes without a key, which tell nothing; beside the page, which holds nothing."""

COUNTED = {
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/embeddings",
    "/v1/attributions",
    *aliases.ROUTES,
}
"""Routes told apart in the count of requests."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}


class Gate:
    """ASGI middleware. key: what "Authorization: Bearer KEY" must say."""

    def __init__(self, app: Any, key: str, metrics: Metrics):
        self.app, self.key, self.metrics = app, key.encode(), metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
                # Only known routes are told apart: anyone can invent others.
                route = path if path in COUNTED else "other"
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        page = path == "/" or path.startswith("/static/")
        if path in OPEN or (page and scope["method"] in ("GET", "HEAD")) or self._knows(scope):
            await self.app(scope, receive, answer)
            return
        error = ApiError(
            401, "a key is needed: Authorization: Bearer KEY (chiasm serve prints it)",
            code="invalid_api_key",
        )  # fmt: skip
        await response_of(error)(scope, receive, answer)

    def _knows(self, scope: Any) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        kind, _, key = given[0].partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key)
