"""Stop strings: a reply ends before the first of them, and no part of one is shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text in, text out; what may be the beginning of a stop string waits."""

    def __init__(self, words: Sequence[str] = ()):
        self.words = [word for word in words if word]
        self._held = ""

    def take(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string came)."""
        self._held += text
        found = [place for word in self.words if (place := self._held.find(word)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((_overlap(self._held, word) for word in self.words), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def rest(self) -> str:
        """What waited, now that no more text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of the text begin the word."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
