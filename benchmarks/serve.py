"""chiasm serve: eight clients at once, against one after the other and against transformers serve.

    batching      eight questions about eight images at once ("ours") and one after the other
                  ("peer"), both asked of chiasm serve: what one batch of all replies brings.
    transformers  the same eight at once, asked of chiasm serve and of transformers serve. Its
                  continuous batching takes text only, so it answers one image after the other.
    decode        from token to token, one reply at a time: the engine with weights in half bytes
                  (--dtype int4) against `generate` of transformers, both in this process, without
                  HTTP. In tokens a second of that time alone.
    drawing       as batching, eight images of 64 codes by a unified model, without guidance.
                  A unit is a code; elsewhere it is a new token.

The model of the first two is the published SmolLM2-135M-Instruct behind a SigLIP tower of 22M and a
projector, both random: 64 visual tokens an image, 32 new tokens a reply, greedy, fp32. chiasm
serves the run, transformers serve its export, a stock LLaVA checkpoint; each is a process of its
own with its command line's defaults, all are asked over HTTP by OpenAI's client. No image is sent
twice, so that no cache answers. Before timing, the replies of both servers to the same images are
checked to be the same (near-ties of the arithmetic may turn one: three quarters must be).

The table tells how long a client waits for its first token, and from token to token (medians over
all streams): one client alone, and eight at once, with each kind of weights that the server
knows, and for `generate` alone. llama.cpp stands beside it (the wheel xllamacpp,
where it is installed) with the same model, exported as GGUF in fp32, and images of the same kind.

The top-level numbers are those of the part with the smallest ratio.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openai
import PIL.Image
import torch
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from benchmarks.harness import (
    Run,
    alternate,
    report,
    result,
    round_to,
    rounds_argument,
    spread_of,
)
from benchmarks.train_unified import build
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample
from chiasm.core.sample import user as ask
from chiasm.data import easy_vqa
from chiasm.generation.generator import Generator
from chiasm.hub import mllm, unified
from chiasm.hub.export import export
from chiasm.hub.load import load
from chiasm.mllm.config import MLLMConfig, MLPConfig, PadConfig
from chiasm.nn.cpu_linear import Weights
from chiasm.serve.engine import Engine
from chiasm.serve.job import Job
from chiasm.unified.config import UnifiedConfig
from chiasm.vision.config import TowerOptions
from chiasm.vision.pretrained import load_encoder

CLIENTS, NEW_TOKENS, SIDE, KEY = 8, 32, 128, "benchmark"
THINGS = ("a fox", "the sea", "a train", "winter", "a baker", "the moon", "an old map", "music")
QUESTIONS = [f"Look at the picture, then tell me a long story about {thing}." for thing in THINGS]
numbers = itertools.count()


def write_models(folder: Path) -> None:
    """mllm (a run of ours), stock (its export), gguf (the same for llama.cpp), unified."""
    torch.manual_seed(0)
    shape = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=16,
        vision_use_head=False,
    )
    SiglipVisionModel(shape).save_pretrained(folder / "siglip")
    config = MLLMConfig(
        encoder=str(folder / "siglip"),
        language_model="smollm2",
        projector=MLPConfig(merge=1),
        lora=None,
        vision=TowerOptions(-2),
        image_processing=PadConfig(),
    )
    vision = load_encoder(str(folder / "siglip"), config.vision)
    model, processor = mllm.build(config, vision)
    mllm.save(folder / "mllm", model, processor, config)
    print(export(folder / "mllm", folder / "stock", "hf"), flush=True)
    if find_spec("xllamacpp"):
        print(export(folder / "mllm", folder / "gguf", "gguf"), flush=True)
    model, processor = build(UnifiedConfig(), easy_vqa.load("train")[:100])
    unified.save(folder / "unified", model, processor)


@dataclass
class Heard:
    """A streamed reply: its text and number of tokens, and when each piece came, in seconds."""

    text: str = ""
    tokens: int = 0
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A server: its client, and what it calls the model that reads images."""

    client: openai.OpenAI
    model: str

    def answer(self, question: str, image_url: str) -> Heard:
        began, heard = time.perf_counter(), Heard()
        for chunk in self.client.chat.completions.create(
            **_wanted(self.model, question, image_url)
        ):
            if chunk.choices and chunk.choices[0].delta.content:
                heard.text += chunk.choices[0].delta.content
                heard.times.append(time.perf_counter() - began)
            if chunk.usage is not None:
                heard.tokens = chunk.usage.completion_tokens
        return heard

    def draw(self, caption: str) -> str:
        extra = {"temperature": 0, "guidance": 1}
        wanted = {"model": "unified", "prompt": caption, "extra_body": extra}
        return self.client.images.generate(**wanted).data[0].b64_json or ""


def _wanted(model: str, question: str, image_url: str) -> dict:
    parts = [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": question},
    ]
    messages = [{"role": "user", "content": parts}]
    told = {"max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
    return {"model": model, "messages": messages, **told, "stream_options": {"include_usage": True}}


@contextmanager
def process(arguments: list[str], model: str) -> Iterator[Asked]:
    """A server that a command line starts, told the port in the place of PORT."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", *(port if part == "PORT" else part for part in arguments)]
    nowhere = subprocess.DEVNULL
    environment = {**os.environ, "CHIASM_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere) as running:
        try:
            url = f"http://127.0.0.1:{port}/v1"
            yield _until_it_answers(Asked(_client(url), model), running)
        finally:
            running.terminate()


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Asked]:
    """llama.cpp's own server, on threads of this process."""
    import xllamacpp

    told = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    told.model.path, told.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    told.port, told.n_parallel, told.n_ctx = 0, CLIENTS, 512 * CLIENTS
    told.cpuparams.n_threads = told.cpuparams_batch.n_threads = torch.get_num_threads()
    told.use_jinja, told.cache_prompt, told.verbosity = True, False, 0
    server = xllamacpp.Server(told)  # type: ignore[attr-defined]
    yield Asked(_client(f"{server.listening_address}/v1"), "llama.cpp")


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=600)


def _until_it_answers(asked: Asked, running: subprocess.Popen) -> Asked:
    while True:
        try:
            asked.answer("Hello.", fresh_image())
            return asked
        except openai.APIConnectionError:
            if running.poll() is not None:
                raise SystemExit(f"serve: the server of {asked.model} ended") from None
            time.sleep(0.5)


class Watch:
    """A streamer of transformers that notes when tokens come; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generated(stock: Path) -> Callable[[str, str], Heard]:
    """What transformers' generate replies without any server."""
    processor = AutoProcessor.from_pretrained(stock)
    model = LlavaForConditionalGeneration.from_pretrained(stock, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def answer(question: str, image_url: str) -> Heard:
        content = [{"type": "image", "url": image_url}, {"type": "text", "text": question}]
        watch, began = Watch(), time.perf_counter()
        told = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            model.generate(**told, max_new_tokens=NEW_TOKENS, do_sample=False, streamer=watch)
        return Heard("", NEW_TOKENS, [when - began for when in watch.times[1:]])

    return answer


def fresh_image() -> str:
    """A data URL of noise that was not sent before."""
    pixels = np.random.default_rng(next(numbers)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    held = io.BytesIO()
    PIL.Image.fromarray(pixels).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def at_once(ask: Callable, *columns: Sequence) -> list:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, *columns))


def one_by_one(ask: Callable, *columns: Sequence) -> list:
    return list(map(ask, *columns))


def fresh_images() -> list[str]:
    return [fresh_image() for _ in range(CLIENTS)]


def counted(way: Callable, asked: Asked, heard: list[Heard]) -> Run:
    """Eight questions about fresh images, whose replies are kept; the number of new tokens."""

    def run() -> float:
        new = way(asked.answer, QUESTIONS, fresh_images())
        heard.extend(new)
        return sum(reply.tokens for reply in new)

    return run


def check(name: str, ours: list, theirs: list) -> None:
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    if same < 0.75 * len(ours):
        raise SystemExit(f"serve: {name}: only {same} of {len(ours)} replies are the same")


def reading(ours: Asked, theirs: Asked, rounds: int) -> tuple[dict[str, dict], list[dict]]:
    """The parts batching and transformers, and the rows of the table."""
    images = fresh_images()
    replies = [at_once(one.answer, QUESTIONS, images) for one in (ours, theirs)]
    check("transformers", *([heard.text for heard in side] for side in replies))
    crowd, alone, peers = [], [], []
    sides = {
        "batching": counted(one_by_one, ours, alone),
        "transformers": counted(at_once, theirs, peers),
    }
    parts = {}
    for name, peer in sides.items():
        parts[name] = result("tokens/s", alternate(counted(at_once, ours, crowd), peer, rounds))
        print(f"{name}: {parts[name]}", flush=True)
    one = one_by_one(theirs.answer, QUESTIONS[:2], fresh_images()[:2])
    return parts, [row("chiasm serve", alone, crowd), row("transformers serve", one, peers)]


def drawing(ours: Asked, rounds: int) -> dict:
    captions = easy_vqa.CAPTIONS[:: 24 // CLIENTS]
    check("drawing", at_once(ours.draw, captions), one_by_one(ours.draw, captions))
    codes = CLIENTS * 64

    def counting(way: Callable) -> Run:
        return lambda: (way(ours.draw, captions), codes)[1]

    return result("codes/s", alternate(counting(at_once), counting(one_by_one), rounds))


def between(heard: list[Heard]) -> float:
    """Seconds from token to token, the median."""
    return float(np.median([gap for reply in heard for gap in np.diff(reply.times)]))


def engine(run: Path, weights: Weights) -> Callable[[str, str], Heard]:
    """What the server's engine replies, without HTTP."""
    engine = Engine("bare", Generator(*load(run), weights=weights))
    engine.start()

    def answer(question: str, image_url: str) -> Heard:
        heard: SimpleQueue = SimpleQueue()
        image = Image(base64.b64decode(image_url.partition(",")[2]))
        sample, began = Sample((ask(image, question),)), time.perf_counter()
        engine.submit(Job(sample, SamplingParams(max_tokens=NEW_TOKENS), heard.put))
        reply = Heard("", NEW_TOKENS)
        while True:
            update = heard.get()
            reply.times.append(time.perf_counter() - began)
            if update.last:
                return reply

    return answer


def decoding(folder: Path, rounds: int) -> tuple[dict, list[dict]]:
    """The part decode, and what it adds to the table."""
    bare, ours = generated(folder / "stock"), engine(folder / "mllm", "int4")
    heard: dict[str, list[Heard]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for side, answer in (("ours", ours), ("peer", bare)):
            new = one_by_one(answer, QUESTIONS[:2], fresh_images()[:2])
            heard[side] += new if number else []
    rates = {side: [1 / between([reply]) for reply in found] for side, found in heard.items()}
    part = {side: round_to(float(np.median(rate))) for side, rate in rates.items()}
    part["ratio"] = round_to(part["ours"] / part["peer"])
    spread = round_to(max(spread_of(rate) for rate in rates.values()))
    told = [
        row("the engine with int4, no HTTP", heard["ours"], []),
        row("generate of transformers, no HTTP", heard["peer"], []),
    ]
    return {**part, "unit": "tokens/s", "spread": spread}, told


def by_weights(folder: Path) -> list[dict]:
    """Rows of the table for each kind of weights, of servers one after the other."""
    rows = []
    for weights in ("bf16", "int8", "int4"):
        command = ["chiasm", "serve", str(folder / "mllm"), "--port", "PORT", "--dtype", weights]
        with process(command, "mllm") as ours:
            alone = one_by_one(ours.answer, QUESTIONS[:4], fresh_images()[:4])
            crowd = at_once(ours.answer, QUESTIONS, fresh_images())
        rows.append(row(f"chiasm serve --dtype {weights}", alone, crowd))
    return rows


def row(name: str, alone: list[Heard], crowd: list[Heard]) -> dict:
    """Of the table: medians over streams, in milliseconds."""
    found: dict = {"server": name}
    for clients, heard in ((1, alone), (CLIENTS, crowd)):
        first = float(np.median([reply.times[0] for reply in heard])) if heard else float("nan")
        gap = between(heard) if heard else float("nan")
        found[f"first token, {clients} at once, ms"] = round_to(1000 * first, 3)
        found[f"between tokens, {clients} at once, ms"] = round_to(1000 * gap, 3)
    return found


def main() -> None:
    rounds = rounds_argument(__doc__, 3)
    with tempfile.TemporaryDirectory() as place, ExitStack() as servers:
        folder = Path(place)
        write_models(folder)
        runs = [str(folder / "mllm"), str(folder / "unified")]
        ours = servers.enter_context(process(["chiasm", "serve", *runs, "--port", "PORT"], "mllm"))
        stock = str(folder / "stock")
        peer = ["transformers.cli.transformers", "serve", stock, "--port", "PORT"]
        theirs = servers.enter_context(process([*peer, "--device", "cpu"], stock))
        parts, told = reading(ours, theirs, rounds)
        parts["drawing"] = drawing(ours, rounds)
        servers.close()
        told[1:1] = by_weights(folder)
        parts["decode"], bare = decoding(folder, rounds)
        told += bare
        if (folder / "gguf").exists():
            with llama_cpp(folder / "gguf") as beside:
                ways = [
                    way(beside.answer, QUESTIONS, fresh_images()) for way in (one_by_one, at_once)
                ]
            told.append(row("llama.cpp", *ways))
    smallest = min(parts.values(), key=lambda part: part["ratio"])
    report("serve", {**smallest, "parts": parts, "rows": told})


if __name__ == "__main__":
    main()
