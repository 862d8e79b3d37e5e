"""A request as the engine sees it, and what it hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import PIL.Image
import torch
from torch import Tensor

from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample
from chiasm.generation.image_token_fsm import Drawn, Edit
from chiasm.generation.sequence import Reply
from chiasm.nn.batched_cache import Seat
from chiasm.serve.stops import StopStrings


class Rule(Protocol):
    """What else a reply must keep to, beside the grammar of images (a JSON schema)."""

    def allowed(self, size: int) -> Tensor:
        """[size] bool: the ids that may come next."""
        ...

    def take(self, token: int) -> None: ...


@dataclass(frozen=True)
class Score:
    """A text token that was chosen: its id, its log-probability (after the grammar, before the
    temperature), and the likeliest ids with theirs."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt and of a reply; *_images: those of them that stand for images; cached:
    of the prompt, those computed for an earlier one."""

    prompt: int = 0
    prompt_images: int = 0
    reply: int = 0
    reply_images: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Update:
    """What became known of a reply: text, a whole image, tokens' scores. drawn: codes of the
    image under way, of how many; sketch: those codes, when a row of them is complete. The last
    one has `finish` ("stop", "length") or `error`."""

    text: str = ""
    image: PIL.Image.Image | None = None
    scores: tuple[Score, ...] = ()
    drawn: tuple[int, int] | None = None
    sketch: Drawn | None = None
    finish: str | None = None
    usage: Usage | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """One reply wanted.

    deliver: called from the engine's thread with every Update. rule: what else the reply must keep
    to. top: -1 for no scores, else how many of the likeliest come with each token. edit: what is
    given of the first image. deadline: by time.monotonic. sampling.max_tokens 0: as many as
    there is room for.
    """

    sample: Sample
    sampling: SamplingParams
    deliver: Callable[[Update], None]
    stop: StopStrings = field(default_factory=StopStrings)
    rule: Rule | None = None
    top: int = -1
    deadline: float = float("inf")
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)
    edit: Edit | None = None

    reply: Reply | None = None
    random: torch.Generator | None = None
    last: int = 0
    slots: list[Seat] = field(default_factory=list)
    prompt: int = 0
    prompt_images: int = 0
    cached: int = 0
    tokens: int = 0
    drawn: int = 0
    drawn_here: int = 0
    last_token: float = 0.0
    scores: list[Score] = field(default_factory=list)
    sampled: list[tuple[int, bool]] = field(default_factory=list)
    """Every token of the reply, and whether it was chosen and not forced by the grammar."""

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt, self.prompt_images, self.tokens, self.drawn, self.cached)
