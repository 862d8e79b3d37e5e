"""Answers in the shapes of OpenAI's API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import PIL.Image

from chiasm.serve.job import Score, Usage
from chiasm.serve.media import data_url
from chiasm.serve.replies import Whole, added


@dataclass(frozen=True)
class ChatWire:
    """One answer's: the id and the time are the same in all its chunks. spell: bytes of a token."""

    model: str
    spell: Callable[[int], bytes]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, replies: Sequence[Whole], logprobs: bool) -> dict:
        choices = []
        for number, reply in enumerate(replies):
            message: dict = {"role": "assistant", "content": reply.text, "refusal": None}
            if reply.images:
                message["images"] = [image_part(image, i) for i, image in enumerate(reply.images)]
            scores = self.logprobs(reply.scores) if logprobs else None
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": scores,
                    "finish_reason": reply.finish,
                }
            )
        usage = usage_of(added([reply.usage for reply in replies]))
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(
        self, number: int, delta: dict, finish: str | None = None, logprobs: dict | None = None
    ) -> dict:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usages: Sequence[Usage]) -> dict:
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": usage_of(added(usages))}

    def logprobs(self, scores: Sequence[Score]) -> dict:
        return {"content": [self._score(score) for score in scores], "refusal": None}

    def _score(self, score: Score) -> dict:
        top = [self._token(i, p) for i, p in score.top]
        return {**self._token(score.id, score.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict:
        found = self.spell(token)
        # -inf is no JSON.
        return {
            "token": found.decode(errors="replace"),
            "logprob": max(logprob, -9999.0),
            "bytes": list(found),
        }

    def _head(self, kind: str) -> dict:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


def image_part(image: PIL.Image.Image, number: int) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(image)}, "index": number}


def usage_of(usage: Usage) -> dict:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.reply,
        "total_tokens": usage.prompt + usage.reply,
        "prompt_tokens_details": {
            "image_tokens": usage.prompt_images,
            "cached_tokens": usage.cached,
        },
        "completion_tokens_details": {"image_tokens": usage.reply_images},
    }


def event(said: dict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(said, ensure_ascii=False)}\n\n"
