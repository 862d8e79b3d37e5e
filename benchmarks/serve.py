"""chiasm serve: eight clients at once against the same requests one after the other.

    mllm     eight questions about eight pictures of 64 visual tokens, 32 new tokens each, with a
             language model of SmolLM2-135M's shape. A unit is a new token.
    unified  eight pictures of 64 codes, each after a short caption, without guidance. A unit is a
             code.

Over HTTP on this machine, OpenAI's client, the server a thread of the same process. "ours" sends
all eight at once, the "peer" sends the next when the last has answered: the ratio is what batching
at every step brings. Random weights, fp32, greedy, nothing that stops early; every client has a
picture or caption of its own, and the cache of encodings is off. Before timing, replies at once are
checked to equal those one by one (near-ties of the arithmetic may turn one: three quarters must).

The top-level numbers are those of the part with the smaller ratio. For mllm the seconds to the
first token and between two tokens (medians of a stream) are told as well.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import openai
import PIL.Image
import torch
import uvicorn

from benchmarks.decode import _mllm, _Numbers
from benchmarks.harness import Run, alternate, report, result, round_to, rounds_argument
from benchmarks.train_unified import build
from chiasm.data import easy_vqa
from chiasm.data.processor import Processor
from chiasm.data.text import train_bpe
from chiasm.infer.generate import Generator
from chiasm.mllm.codec import MLLMCodec
from chiasm.serve.app import create_app
from chiasm.serve.recent import RecentFeatures
from chiasm.serve.server import Server
from chiasm.unified.config import UnifiedConfig

CLIENTS, NEW_TOKENS, KEY = 8, 32, "benchmark"


def mllm() -> Generator:
    """An MLLM of SmolLM2-135M's shape that writes ids as numbers and never stops."""
    model, _ = _mllm()
    samples = easy_vqa.load("train")[:100]
    bpe = train_bpe([turn.text for s in samples for turn in s.turns], 400)
    codec = MLLMCodec(model.vision.config, model.projector, model.image_token)
    return Generator(model, Processor(_Numbers(bpe), codec))


def unified() -> Generator:
    model, processor = build(UnifiedConfig(), easy_vqa.load("train")[:100])
    return Generator(model, processor)


@contextmanager
def serving(models: dict[str, Generator]) -> Iterator[tuple[Server, openai.OpenAI]]:
    """A server on a free port, and a client of it."""
    server = Server(dict(models), slots=CLIENTS)
    for served in server.models.values():
        if served.engine is not None and hasattr(served.engine.respond.model, "recent"):
            served.engine.respond.model.recent = RecentFeatures(0)
    settings = {"port": 0, "log_level": "warning", "lifespan": "on", "ws": "none"}
    listener = uvicorn.Server(uvicorn.Config(create_app(server, KEY), **settings))
    thread = threading.Thread(target=lambda: asyncio.run(listener.serve()))
    thread.start()
    while not listener.started:
        time.sleep(0.01)
    port = listener.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server, openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=600)
    finally:
        listener.should_exit = True
        thread.join()


def questions(client: openai.OpenAI) -> list[Callable[[], str]]:
    """Requests to "mllm", each about a picture of its own."""

    def request(i: int) -> Callable[[], str]:
        wanted = {"messages": _about(i), "max_tokens": NEW_TOKENS, "model": "mllm"}
        return lambda: client.chat.completions.create(**wanted).choices[0].message.content

    return [request(i) for i in range(CLIENTS)]


def drawings(client: openai.OpenAI) -> list[Callable[[], str]]:
    """Requests to "unified"."""

    def request(caption: str) -> Callable[[], str]:
        extra = {"temperature": 0, "guidance": 1}
        wanted = {"model": "unified", "prompt": caption, "extra_body": extra}
        return lambda: client.images.generate(**wanted).data[0].b64_json

    return [request(caption) for caption in easy_vqa.CAPTIONS[:: 24 // CLIENTS]]


def measured(requests: list[Callable[[], str]], units: int, unit: str, rounds: int) -> dict:
    """All at once against one by one."""
    with ThreadPoolExecutor(CLIENTS) as pool:

        def at_once() -> list[str]:
            return list(pool.map(lambda ask: ask(), requests))

        def one_by_one() -> list[str]:
            return [ask() for ask in requests]

        same = sum(a == b for a, b in zip(at_once(), one_by_one(), strict=True))
        if same < 0.75 * len(requests):
            raise SystemExit(f"serve: only {same} of {len(requests)} replies are the single ones")

        def counted(side: Callable[[], list[str]]) -> Run:
            return lambda: (side(), units)[1]

        return result(unit, alternate(counted(at_once), counted(one_by_one), rounds))


def latency(client: openai.OpenAI) -> tuple[float, float]:
    """Seconds to the first token and between two, medians over single streams."""
    first, between = [], []
    for i in range(3):
        began, times = time.perf_counter(), []
        wanted = {"messages": _about(i), "max_tokens": NEW_TOKENS, "model": "mllm"}
        for chunk in client.chat.completions.create(**wanted, stream=True):
            if chunk.choices[0].delta.content:
                times.append(time.perf_counter())
        first.append(times[0] - began)
        between += list(np.diff(times))
    return float(np.median(first)), float(np.median(between))


def _about(i: int) -> list[dict]:
    pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
    held = io.BytesIO()
    PIL.Image.fromarray(pixels).save(held, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return [{"role": "user", "content": parts}]


def main() -> None:
    rounds = rounds_argument(__doc__, 5)
    torch.manual_seed(0)
    parts = {}
    with serving({"mllm": mllm(), "unified": unified()}) as (server, client):
        drawn = CLIENTS * server.talker("unified").respond.codes_per_image
        parts["unified"] = measured(drawings(client), drawn, "codes/s", rounds)
        print(f"unified: {parts['unified']}", flush=True)
        parts["mllm"] = measured(questions(client), CLIENTS * NEW_TOKENS, "tokens/s", rounds)
        first, between = latency(client)
        print(f"mllm: {parts['mllm']}", flush=True)
    smaller = min(parts.values(), key=lambda part: part["ratio"])
    told = {"first_token_s": round_to(first), "between_tokens_s": round_to(between)}
    report("serve", {**smaller, "parts": parts, **told})


if __name__ == "__main__":
    main()
