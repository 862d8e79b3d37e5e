"""Replies too short to teach or too long to learn."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.core.sample import Sample


@dataclass
class Length:
    """least, most: characters that the assistant says in all, outer spaces apart."""

    least: int = 1
    most: int = 8000

    def reason(self, sample: Sample) -> str | None:
        count = sum(len(t.text.strip()) for t in sample.turns if t.role == "assistant")
        if count < self.least:
            return f"replies of {count} characters, under {self.least}"
        return f"replies of {count} characters, over {self.most}" if count > self.most else None
