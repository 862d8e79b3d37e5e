"""Samples in another language than the wanted ones."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.core.sample import Sample
from chiasm.data.filters.rule import words_of
from chiasm.data.language import NONE, language, script


@dataclass
class Language:
    """keep: codes or scripts, joined by +: "en+de", or "Latin script" without the extra
    `language`. Too short a text is judged by its script alone, and kept if a code is asked for."""

    keep: str = "en"

    def reason(self, sample: Sample) -> str | None:
        text = words_of(sample)
        found, wanted = language(text), self.keep.split("+")
        unsure = found == NONE or (
            found.endswith("script") and all(not name.endswith("script") for name in wanted)
        )
        if unsure or found in wanted or script(text) in wanted:
            return None
        return f"language {found}, not {self.keep}"
