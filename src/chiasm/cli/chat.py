"""chiasm chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, Image, RunFolder


@dataclass(kw_only=True)
class Chat(DeviceOptions):
    """Ask about an image; without a question, an interactive session."""

    run: Positional[RunFolder]
    image: Positional[Image | None] = None
    """An image."""
    question: Positional[Annotated[str | None, arg(metavar="QUESTION")]] = None
    """What to ask about it."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Choose among the k likeliest tokens only (0: all)."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that make up this probability."""
    max_tokens: int = 64
    """Longest reply."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.core.protocols import SamplingParams
        from chiasm.recipes.chat import ask, session

        sampling = SamplingParams(
            self.temperature, self.top_k, self.top_p, max_tokens=self.max_tokens
        )
        if self.question is None:
            session(self.run, self.image, sampling)
        else:
            ask(self.run, self.image, self.question, sampling)
