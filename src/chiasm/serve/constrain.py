"""Replies that are JSON, or JSON of a schema: llguidance says which tokens may come next, and what
bytes they stand for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from chiasm.serve.errors import ApiError
from chiasm.serve.job import Rule
from chiasm.serve.json_schema import constraining
from chiasm.serve.schema import ResponseFormat

# Free white space is an invitation to small models to write nothing else.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraints:
    """Makes rules for replies written with a template's tokenizer, which it reads on first use:
    not for the event loop."""

    def __init__(self, template: Any):
        self.template = template
        self._tokenizer: LLTokenizer | None = None

    def rule(self, wanted: ResponseFormat | None) -> Rule | None:
        """None where any text will do. Raises ApiError for a schema that cannot be kept to."""
        if wanted is None or wanted.type == "text":
            return None
        schema: Any = {"type": "object"}
        if wanted.type == "json_schema":
            schema = wanted.json_schema.schema_ if wanted.json_schema else None
            if schema is None:
                raise ApiError(
                    400, "json_schema without a schema", "response_format.json_schema.schema"
                )
        tokenizer = self.tokenizer()
        try:
            told = json.dumps(constraining(schema))
            grammar = LLMatcher.grammar_from_json_schema(told, defaults=STYLE)  # type: ignore[arg-type]
            wrong = LLMatcher.validate_grammar(grammar, tokenizer)
        except (ValueError, RecursionError) as error:
            wrong = str(error)
        if wrong:
            raise ApiError(400, f"the JSON schema: {wrong[:300]}", "response_format.json_schema")
        return SchemaRule(LLMatcher(tokenizer, grammar), tokenizer.vocab_size)

    def spell(self, token: int) -> bytes:
        """The bytes of a token, which need not be whole characters; none of a special one."""
        tokenizer = self.tokenizer()
        return b"" if tokenizer.is_special_token(token) else tokenizer.decode_bytes([token])

    def tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            words = getattr(self.template.tokenizer, "backend_tokenizer", self.template.tokenizer)
            self._tokenizer = LLTokenizer(words.to_str(), eos_token=list(self.template.stop))
        return self._tokenizer


class SchemaRule:
    """A Rule (job.py) by llguidance's matcher over `known` ids. What comes next is found
    out in `take`, so that where the matcher gives up (a schema may be too hard) it is this reply
    that fails, not the batch it is in."""

    def __init__(self, matcher: LLMatcher, known: int):
        self.matcher, self.known = matcher, known
        self._bits = self._next()

    def allowed(self, size: int) -> Tensor:
        """[size] bool."""
        found = np.zeros(size, bool)
        known = np.unpackbits(self._bits, count=min(self.known, size), bitorder="little")
        found[: len(known)] = known
        return torch.from_numpy(found)

    def take(self, token: int) -> None:
        """Raises ApiError where the matcher gives up."""
        self.matcher.consume_token(token)
        self._bits = self._next()

    def _next(self) -> np.ndarray:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        if self.matcher.is_error():
            why = self.matcher.get_error()[:200]
            raise ApiError(400, f"the JSON schema: {why}", "response_format.json_schema")
        return bits
