"""Pictures from text, looked at before they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import PIL.Image

from chiasm.core.protocols import Sampling
from chiasm.core.sample import Image, Sample, answer, question
from chiasm.infer.generate import Generator
from chiasm.infer.likelihood import reply_log_likelihood


@dataclass(frozen=True)
class Drawing:
    """The picture shown, and the first one drawn, which is what no looking would have shown."""

    best: PIL.Image.Image
    first: PIL.Image.Image


def draw(
    respond: Generator, texts: Sequence[str], sampling: Sampling, candidates: int = 1
) -> list[Drawing]:
    """One drawing a text: of `candidates` pictures the one of which the model itself would most
    likely say the text. A unified model reads pictures better than it draws them (LOG.md); DALL-E
    (2102.12092, section 2.6) let a contrastive model choose. Raises NotGenerativeError for a model
    that cannot draw."""
    wanted = [text for text in texts for _ in range(candidates)]
    asked = [Sample((question(text),)) for text in wanted]
    pictures: dict[int, PIL.Image.Image] = {}
    for index, piece in respond(asked, replace(sampling, max_images=1, draw_first=True)):
        if piece.image is not None:
            pictures[index] = piece.image
    scores = [0.0] * len(wanted)
    if candidates > 1:
        seen = [
            Sample((question(Image(pictures[i])), answer(text))) for i, text in enumerate(wanted)
        ]
        scores = reply_log_likelihood(respond, seen)
    drawings = []
    for start in range(0, len(wanted), candidates):
        best = max(range(start, start + candidates), key=scores.__getitem__)
        drawings.append(Drawing(pictures[best], pictures[start]))
    return drawings
