"""Preference pairs and labelled replies to packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Message, Sample
from chiasm.data.replies import (
    EncodedReplies,
    ReplyBatch,
    encode_labelled,
    encode_pair,
    first_code_of,
    pack_replies,
)
from chiasm.data.stream import SampleStream
from chiasm.data.turns import MixtureDraw as Place

NEARBY = 8
"""Following samples among which an unrelated reply is looked for."""


class PreferenceStream(SampleStream):
    """Endless batches of pairs, chosen and rejected as branches of one trunk; labelled: of labelled
    replies and one unrelated reply to each prompt instead (KTO, 2402.01306, section 4.1), which is
    the reply of the next sample of the data."""

    def __init__(self, *parts: Any, labelled: bool = False, **more: Any):
        super().__init__(*parts, **more)
        self.labelled, self._first_code = labelled, first_code_of(self.processor)

    def _encode(self, sample: Sample) -> EncodedReplies:
        return encode_pair(self.processor, sample)

    def _pack(self, row: Sequence[EncodedReplies]) -> ReplyBatch:
        return pack_replies(row, self.tokens, self._first_code)

    def _at(self, turn: Place, make: Callable[[Sample], Any]) -> Any:
        if self.labelled:
            return super()._at(
                turn,
                lambda sample: encode_labelled(self.processor, sample, self._unrelated(turn.index)),
            )
        return super()._at(turn, make)

    def _unrelated(self, index: int) -> Message:
        for further in range(1, NEARBY + 1):
            try:
                turns = self.samples[(index + further) % len(self.samples)].turns
            except DataError:
                continue
            if turns and turns[-1].role == "assistant":
                return turns[-1].replace(supervised=True)
        raise DataError(f"none of the {NEARBY} samples after it has a reply to compare with")
