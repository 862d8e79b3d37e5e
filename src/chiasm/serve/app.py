"""The routes put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from chiasm.core.errors import ChiasmError
from chiasm.serve.chat import chat_routes
from chiasm.serve.embeddings import embedding_routes
from chiasm.serve.errors import ApiError, response_of
from chiasm.serve.gate import Gate
from chiasm.serve.images import image_routes
from chiasm.serve.looks import look_routes
from chiasm.serve.server import Served, Server

STATIC = Path(__file__).with_name("static")


def create_app(server: Server, key: str) -> FastAPI:
    """An ASGI application; its lifespan starts and stops the engines."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        server.start()
        try:
            yield
        finally:
            server.stop()

    # Its pages of documentation would load scripts of others.
    app = FastAPI(lifespan=life, openapi_url=None, docs_url=None, redoc_url=None)
    for routes in (chat_routes, image_routes, embedding_routes, look_routes):
        app.include_router(routes(server))
    _own_routes(app, server)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(ChiasmError, _as_answer)
    app.add_exception_handler(HTTPException, _as_answer)
    app.add_exception_handler(404, _as_answer)
    app.add_exception_handler(405, _as_answer)
    app.add_exception_handler(Exception, _as_answer)
    app.add_middleware(Gate, key=key, metrics=server.metrics)
    return app


def _own_routes(app: FastAPI, server: Server) -> None:
    @app.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        found = "ready" if server.ready else "not ready"
        return JSONResponse({"status": found}, 200 if server.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(server.metrics.text(), media_type=kind)

    @app.get("/v1/models")
    async def models() -> Response:
        found = [_described(served, server) for served in server.models.values()]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(_described(server.find(name), server))


def _described(served: Served, server: Server) -> dict:
    return {
        "id": served.name,
        "object": "model",
        "created": server.started,
        "owned_by": "chiasm",
        "capabilities": served.abilities,
    }


async def _as_answer(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) or hasattr(error, "status_code"):
        status = int(getattr(error, "status_code", 500))
        what = {404: "no such route", 405: "this route takes another method"}
        found = ApiError(status, f"{request.method}: {what.get(status, 'not possible')}")
        return response_of(found)
    return response_of(error)
