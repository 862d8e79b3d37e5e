"""ROUGE-L (Lin 2004, aclanthology W04-1013)."""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.eval.metrics.words import caption_tokens


def rouge_l(reply: str, references: Sequence[str], beta: float = 1.2) -> float:
    """F of the longest common subsequence of words: (1 + β²)PR / (R + β²P), with the best
    precision and the best recall over the references as the captioning evaluations take them
    (β = 1.2); β = 1 is the summarisers' F1. 0 for an empty reply. Raises ValueError without
    references."""
    if not references:
        raise ValueError("rouge_l without references")
    said = caption_tokens(reply)
    precision = recall = 0.0
    for reference in references:
        wanted = caption_tokens(reference)
        common = _common(said, wanted)
        precision = max(precision, common / len(said) if said else 0.0)
        recall = max(recall, common / len(wanted) if wanted else 0.0)
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
