"""A chat request as a sample, and as what is asked of the engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

from chiasm.core.protocols import Sampling
from chiasm.core.sample import Image, Role, Sample, Text, Turn
from chiasm.serve.engine import Engine
from chiasm.serve.errors import ApiError
from chiasm.serve.job import Job
from chiasm.serve.limits import Holding, Limits
from chiasm.serve.media import check_urls, picture_of
from chiasm.serve.schema import ChatRequest, ImageRequest, Message, Part
from chiasm.serve.stops import StopStrings

# What `chiasm draw` uses (cli.py): with the model's plain distribution pictures are worse.
DRAWING = {"temperature": 1.0, "top_p": 0.95, "guidance": 1.5}


def check(request: ChatRequest, limits: Limits) -> None:
    """Raises ApiError for what is refused before any picture is decoded."""
    urls = [
        (part.image_url.url if part.image_url else "", param)
        for number, message in enumerate(request.messages)
        for part, param in _parts(message, number)
        if _kind(part, param) == "image_url"
    ]
    check_urls(urls, limits, "messages")
    choices(request, limits)
    if len(request.stop or ()) > limits.stops:
        raise ApiError(400, f"stop: more than the {limits.stops} strings allowed", "stop")
    structured = request.response_format is not None and request.response_format.type != "text"
    if structured and "image" in (request.modalities or ()):
        raise ApiError(400, "JSON and pictures cannot be asked for together", "response_format")
    if request.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "messages")


def choices(request: ChatRequest | ImageRequest, limits: Limits) -> int:
    """How many replies or pictures are wanted. Raises ApiError for too many."""
    count = request.n or 1
    if count > limits.choices:
        raise ApiError(400, f"n: more than the {limits.choices} allowed", "n")
    return count


def sample_of(request: ChatRequest, limits: Limits, holding: Holding) -> Sample:
    """Decodes the pictures: not for the event loop."""
    turns = []
    for number, message in enumerate(request.messages):
        parts: list[Text | Image] = []
        for part, param in _parts(message, number):
            if part.image_url is not None and part.type == "image_url":
                parts.append(picture_of(part.image_url.url, limits, holding, param))
            else:
                parts.append(Text(part.text or ""))
        role: Role = "system" if message.role == "developer" else message.role
        turns.append(Turn(role, tuple(parts)))
    return Sample(tuple(turns), "request")


def jobs_of(request: ChatRequest, sample: Sample, engine: Engine, limits: Limits) -> list[Job]:
    """One a choice; choice i is seeded with seed + i."""
    wanted = request.modalities or ["text"]
    asked = request.max_completion_tokens or request.max_tokens or limits.tokens
    sampling = sampling_of(
        request,
        draws="image" in wanted,
        max_tokens=min(asked, limits.tokens),
        max_images=(request.max_images or 1) if "image" in wanted else 0,
        draw_first="text" not in wanted,
    )
    top = (request.top_logprobs or 0) if request.logprobs else -1
    deadline = time.monotonic() + limits.seconds
    return [
        Job(sample, one, _unheard, StopStrings(request.stop or ()), None, top, deadline)
        for one in seeded(sampling, request.n or 1)
    ]


def sampling_of(
    request: ChatRequest | ImageRequest,
    draws: bool,
    max_tokens: int,
    max_images: int,
    draw_first: bool,
) -> Sampling:
    """Greedy where nothing is said, but what draws draws as `chiasm draw` does."""
    default = DRAWING if draws else {"temperature": 0.0, "top_p": 1.0, "guidance": 1.0}

    def given(name: str) -> float:
        value = getattr(request, name)
        return default[name] if value is None else value

    seed = secrets.randbits(63) if request.seed is None else request.seed
    return Sampling(
        temperature=given("temperature"),
        top_k=request.top_k or 0,
        top_p=given("top_p"),
        guidance=given("guidance") if draws else 1.0,
        max_tokens=max_tokens,
        max_images=max_images,
        draw_first=draw_first,
        seed=seed,
    )


def seeded(sampling: Sampling, count: int) -> Iterator[Sampling]:
    for number in range(count):
        yield replace(sampling, seed=(sampling.seed + number) % 2**63 if number else sampling.seed)


def _parts(message: Message, number: int) -> Iterator[tuple[Part, str]]:
    """Parts with the name of their place."""
    place = f"messages.{number}"
    if isinstance(message.content, str):
        yield Part(type="text", text=message.content), f"{place}.content"
    else:
        for i, part in enumerate(message.content or ()):
            yield part, f"{place}.content.{i}"
    for i, part in enumerate(message.images or ()):
        yield part, f"{place}.images.{i}"


def _kind(part: Part, param: str) -> str:
    complete = {"text": part.text is not None, "image_url": part.image_url is not None}
    if part.type not in complete:
        raise ApiError(
            400, f"a part of type '{part.type}'; this server reads text and image_url", param
        )
    if not complete[part.type]:
        raise ApiError(400, f"a part of type '{part.type}' without {part.type}", param)
    return part.type


def _unheard(_update: object) -> None:
    """Until someone listens (replies.py)."""
