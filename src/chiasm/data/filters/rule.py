"""What a rule is."""

from __future__ import annotations

from typing import Protocol

from chiasm.core.sample import Sample


class Rule(Protocol):
    """reason(sample): why the sample is left out, or None to keep it.

    Called once for every sample, in order, until a rule gives a reason; a rule may remember what
    it has kept. Its parameters are the fields of a dataclass, which --rules sets.
    """

    def reason(self, sample: Sample) -> str | None: ...


def words_of(sample: Sample) -> str:
    """Everything that is said, a turn a line."""
    return "\n".join(turn.text for turn in sample.turns)
