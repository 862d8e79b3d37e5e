"""The same words about the same pixels as an earlier sample's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from chiasm.core.sample import Image, Sample, Text


@dataclass
class ExactDuplicate:
    _seen: dict[bytes, str] = field(default_factory=dict, init=False, repr=False)

    def reason(self, sample: Sample) -> str | None:
        content = hashlib.sha256()
        for turn in sample.turns:
            content.update(f"\0{turn.role}".encode())
            for part in turn.content:
                if isinstance(part, Text):
                    words = part.text
                else:
                    words = part.digest() if isinstance(part, Image) else str(part.path)
                content.update(f"\0{type(part).__name__}\0{words}".encode("utf-8", "replace"))
        key = content.digest()
        if key in self._seen:
            return f"the same as {self._seen[key]}"
        self._seen[key] = sample.name
        return None
