"""A chat request as a sample, and as what is asked of the engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Message, Role, Sample, Text
from chiasm.core.sample import Part as SamplePart
from chiasm.data.clips import Clips
from chiasm.serve.engine import Engine
from chiasm.serve.errors import ApiError
from chiasm.serve.job import Job
from chiasm.serve.limits import Holding, Limits
from chiasm.serve.media import check_clip, check_urls, clip_of, image_of
from chiasm.serve.schema import ChatMessage, ChatRequest, ImageRequest, Part
from chiasm.serve.stops import StopStrings

# As `chiasm generate` (cli/generate.py): with the model's plain distribution images are worse.
DRAWING = {"temperature": 1.0, "top_p": 0.95, "guidance": 1.5}

KINDS = ("text", "image_url", "video_url")
"""Parts of a message that are read."""


def check(request: ChatRequest, limits: Limits) -> None:
    """Raises ApiError for what is refused before any image is decoded."""
    images, clips = [], 0
    for number, message in enumerate(request.messages):
        for part, param in _parts(message, number):
            kind = _kind(part, param)
            if kind == "image_url" and part.image_url is not None:
                images.append((part.image_url.url, param))
            elif kind == "video_url" and part.video_url is not None:
                check_clip(part.video_url.url, param)
                clips += 1
    check_urls(images, limits, "messages")
    if clips > limits.clips:
        raise ApiError(400, f"{clips} clips, more than the {limits.clips} allowed", "messages")
    choices(request, limits)
    if len(request.stop or ()) > limits.stops:
        raise ApiError(400, f"stop: more than the {limits.stops} strings allowed", "stop")
    structured = request.response_format is not None and request.response_format.type != "text"
    if structured and "image" in (request.modalities or ()):
        raise ApiError(400, "JSON and images cannot be asked for together", "response_format")
    if request.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "messages")


def choices(request: ChatRequest | ImageRequest, limits: Limits) -> int:
    """How many replies or images are wanted. Raises ApiError for too many."""
    count = request.n or 1
    if count > limits.choices:
        raise ApiError(400, f"n: more than the {limits.choices} allowed", "n")
    return count


def sample_of(
    request: ChatRequest, clips: Clips | None, limits: Limits, holding: Holding
) -> Sample:
    """Decodes images and clips: not for the event loop. clips: how the model sees them."""
    turns = []
    for number, message in enumerate(request.messages):
        parts: list[SamplePart] = []
        for part, param in _parts(message, number):
            if part.type == "image_url" and part.image_url is not None:
                parts.append(image_of(part.image_url.url, limits, holding, param))
            elif part.type == "video_url" and part.video_url is not None:
                parts += clip_of(part.video_url.url, clips, limits, holding, param)
            else:
                parts.append(Text(part.text or ""))
        role: Role = "system" if message.role == "developer" else message.role
        turns.append(Message(role, tuple(parts)))
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
) -> SamplingParams:
    """Greedy where nothing is said, but what draws draws as `chiasm generate` does."""
    default = DRAWING if draws else {"temperature": 0.0, "top_p": 1.0, "guidance": 1.0}

    def given(name: str) -> float:
        value = getattr(request, name)
        return default[name] if value is None else value

    seed = secrets.randbits(63) if request.seed is None else request.seed
    return SamplingParams(
        temperature=given("temperature"),
        top_k=request.top_k or 0,
        top_p=given("top_p"),
        guidance=given("guidance") if draws else 1.0,
        max_tokens=max_tokens,
        max_images=max_images,
        draw_first=draw_first,
        seed=seed,
    )


def seeded(sampling: SamplingParams, count: int) -> Iterator[SamplingParams]:
    for number in range(count):
        yield replace(sampling, seed=(sampling.seed + number) % 2**63 if number else sampling.seed)


def _parts(message: ChatMessage, number: int) -> Iterator[tuple[Part, str]]:
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
    if part.type not in KINDS:
        raise ApiError(
            400, f"a part of type '{part.type}'; this server reads {', '.join(KINDS)}", param
        )
    if getattr(part, part.type) is None:
        raise ApiError(400, f"a part of type '{part.type}' without {part.type}", param)
    return part.type


def _unheard(_update: object) -> None:
    """Until someone listens (replies.py)."""
