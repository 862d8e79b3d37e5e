"""Pictures from text, looked at before they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import PIL.Image

from chiasm.core.protocols import Sampling
from chiasm.core.sample import Image, Sample, answer, question
from chiasm.data.augment import mirrorable, mirrored
from chiasm.infer.generate import Generator
from chiasm.infer.grammar import Edit
from chiasm.infer.likelihood import reply_log_likelihood

SURE = math.log(0.8)
"""A picture of which the model says the text with this log-probability needs no other beside it."""

APART = 1_000_003


@dataclass
class Drawing:
    """The picture shown, and the first one drawn, which is what no looking would have shown;
    tries: how many were drawn, score: log p(text | the best), nats."""

    best: PIL.Image.Image
    first: PIL.Image.Image
    tries: int = 1
    score: float = -math.inf


def draw(
    respond: Generator,
    texts: Sequence[str],
    sampling: Sampling,
    candidates: int = 1,
    edit: Edit | None = None,
) -> list[Drawing]:
    """One drawing a text: of up to `candidates` pictures the one of which the model itself would
    most likely say the text, also of the mirror image where the text is as true of it, drawn anew
    until it is sure. A unified model reads pictures better than it draws them, and in the mirror
    those that deceived it while it drew (LOG.md); DALL-E (2102.12092, section 2.6) let a
    contrastive model choose among all. edit: what is given of every picture. Raises
    NotGenerativeError for a model that cannot draw."""
    drawings: dict[int, Drawing] = {}
    left = list(range(len(texts)))
    for attempt in range(candidates):
        asked = [texts[i] for i in left]
        # Far from the next seed, whose first drawing must not be this one's second.
        seeded = replace(sampling, seed=sampling.seed + attempt * APART)
        pictures = _pictures(respond, [(text,) for text in asked], seeded, edit)
        scores = [-math.inf] * len(left)
        if candidates > 1:
            scores = _read(respond, pictures, asked)
        for i, picture, score in zip(left, pictures, scores, strict=True):
            known = drawings.setdefault(i, Drawing(picture, picture, 0, score))
            known.tries += 1
            if score > known.score:
                known.best, known.score = picture, score
        left = [i for i in left if drawings[i].score < SURE]
        if not left:
            break
    return [drawings[i] for i in range(len(texts))]


def _read(
    respond: Generator, pictures: Sequence[PIL.Image.Image], texts: Sequence[str]
) -> list[float]:
    """log p(text | picture) of each pair, nats; where its mirror image may be asked too, the mean
    of both."""
    shown = [
        [p, mirrored(p)] if mirrorable([t]) else [p] for p, t in zip(pictures, texts, strict=True)
    ]
    seen = [
        Sample((question(Image(side)), answer(text)))
        for sides, text in zip(shown, texts, strict=True)
        for side in sides
    ]
    found = iter(reply_log_likelihood(respond, seen))
    return [fmean(next(found) for _ in sides) for sides in shown]


def redraw(
    respond: Generator, picture: Image, texts: Sequence[str], sampling: Sampling
) -> list[PIL.Image.Image]:
    """What the model draws when it is shown a picture and told how to change it, one a text.
    Raises NotGenerativeError for a model that cannot draw."""
    return _pictures(respond, [(picture, text) for text in texts], sampling)


def _pictures(
    respond: Generator,
    asked: Sequence[tuple[Image | str, ...]],
    sampling: Sampling,
    edit: Edit | None = None,
) -> list[PIL.Image.Image]:
    drawn: dict[int, PIL.Image.Image] = {}
    samples = [Sample((question(*parts),)) for parts in asked]
    drawing = replace(sampling, max_images=1, draw_first=True)
    for index, piece in respond(samples, drawing, [edit] * len(samples)):
        if piece.image is not None:
            drawn[index] = piece.image
    return [drawn[i] for i in range(len(samples))]
