"""Whether a reply holds the answer among other words."""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.eval.metrics.vqa import fold


def contains(reply: str, answers: Sequence[str], verbatim: bool = False) -> bool:
    """OCRBench's rule (2305.07895): an answer is a substring of the reply, in lower case with line
    breaks as blanks; verbatim (its handwritten formulas): case counts, white space does not."""

    def plain(text: str) -> str:
        return "".join(text.split()) if verbatim else text.lower().strip().replace("\n", " ")

    said = plain(reply)
    return any(plain(answer) in said for answer in answers if plain(answer))


def contains_words(reply: str, answers: Sequence[str]) -> bool:
    """Whether an answer occurs in the reply as whole words, both folded: "12" is not in "112"."""
    said = f" {fold(reply)} "
    return any(f" {fold(answer)} " in said for answer in answers if fold(answer))
