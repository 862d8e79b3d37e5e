"""uvicorn around the application: one process, which ends by finishing what it has begun."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import uvicorn
from rich.console import Console

from chiasm.serve.app import create_app
from chiasm.serve.server import Server


@dataclass(frozen=True)
class Address:
    """key "": a fresh one, printed. drain: seconds that requests under way have after SIGTERM."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    drain: int = 30


def listen(server: Server, address: Address) -> None:
    """Serve until SIGTERM or SIGINT."""
    key = address.key or secrets.token_urlsafe(24)
    app = create_app(server, key)
    _greet(server, address, key)
    uvicorn.run(
        app,
        host=address.host,
        port=address.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=32 * 1024,
        timeout_graceful_shutdown=address.drain,
        # Connections, idle ones included; requests beyond them are answered 503 at once.
        limit_concurrency=1024,
    )


def _greet(server: Server, address: Address, key: str) -> None:
    host = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{host}:{address.port}"
    console = Console()
    for served in server.models.values():
        console.print(f"{served.name}: {', '.join(served.abilities)}", highlight=False)
    console.print(f"API   {url}/v1   key {key}", highlight=False, soft_wrap=True)
    # What follows # is never sent to the server, so it is in no log.
    console.print(f"Page  {url}/#key={key}", highlight=False, soft_wrap=True)
    if address.host not in ("127.0.0.1", "localhost", "::1"):
        console.print("Others can reach this address; put a proxy with TLS before it.")
