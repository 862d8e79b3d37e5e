"""Replies of models that run by their own class: batches of prompts through its `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.core.device import model_device
from chiasm.core.errors import NotGenerativeError
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Sample
from chiasm.hub.generic import GenericProcessor, GenericVLM

TOGETHER = 8
"""Prompts in one batch, where padding changes nothing."""


class GenericGenerator:
    """A Respond (core/protocols.py) over transformers' own generate.

    Prompts of like length share a batch, if the class gives the logits of a padded prompt that it
    gives the prompt alone; that is tried once. Otherwise they are asked one by one.
    """

    codes_per_image = 0

    def __init__(self, model: GenericVLM, processor: GenericProcessor):
        self.model, self.processor = model, processor
        self.device = model_device(model)
        self._pads: bool | None = None

    def __call__(
        self, samples: Sequence[Sample], sampling: SamplingParams
    ) -> Iterator[tuple[int, StreamChunk]]:
        """Yields (index of the sample, its whole reply). Raises DataError for a sample that the
        processor refuses, NotGenerativeError where images are wanted."""
        if sampling.draw_first or sampling.max_images:
            raise NotGenerativeError(
                "this model reads images but cannot draw them; use a unified model"
            )
        lengths = [sum(len(t.text) for t in sample.turns) for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: (len(samples[i].images), lengths[i]))
        size = TOGETHER if len(samples) > 1 and self._padding_is_exact(samples, order) else 1
        for first in range(0, len(order), size):
            members = order[first : first + size]
            texts = self._replies([samples[i] for i in members], sampling)
            for i, (text, finish) in zip(members, texts, strict=True):
                yield i, StreamChunk(text, finish=finish)

    @torch.inference_mode()
    def _replies(
        self, samples: Sequence[Sample], sampling: SamplingParams
    ) -> list[tuple[str, str]]:  # fmt: skip
        inputs = self._inputs(samples)
        model: Any = self.model.model
        settings = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
            settings |= {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            }  # type: ignore[assignment]
        pad = self.processor.tokenizer.pad_token_id
        ids = model.generate(
            **inputs, max_new_tokens=sampling.max_tokens, pad_token_id=pad, **settings
        )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        replies = []
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            text = self.processor.decode(row[:stop])
            replies.append((text, "length" if stop is None else "stop"))
        return replies

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return {n: value.to(self.device) for n, value in self.processor.inputs(samples).items()}

    def _padding_is_exact(self, samples: Sequence[Sample], order: Sequence[int]) -> bool:
        if self._pads is None:
            self._pads = self._try_padding([samples[order[0]], samples[order[-1]]])
        return self._pads

    @torch.inference_mode()
    def _try_padding(self, two: Sequence[Sample]) -> bool:
        """Whether the last logits of the shorter of two prompts are the same in a padded batch."""
        try:
            together = self.model.model(**self._inputs(two)).logits[0, -1]
            alone = self.model.model(**self._inputs(two[:1])).logits[0, -1]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        return bool(torch.dist(together, alone) <= 1e-3 * alone.norm())
