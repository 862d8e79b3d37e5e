"""Images from text, looked at before they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import PIL.Image

from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.augment import mirrorable, mirrored
from chiasm.generation.generator import Generator
from chiasm.generation.image_token_fsm import Edit
from chiasm.generation.likelihood import reply_log_likelihood

SURE = math.log(0.8)
"""An image of which the model says the text with this log-probability needs no other beside it."""

APART = 1_000_003


@dataclass
class Drawing:
    """The image shown, and the first one drawn, which is what no looking would have shown;
    tries: how many were drawn, score: log p(text | the best), nats."""

    best: PIL.Image.Image
    first: PIL.Image.Image
    tries: int = 1
    score: float = -math.inf


def draw(
    respond: Generator,
    texts: Sequence[str],
    sampling: SamplingParams,
    candidates: int = 1,
    edit: Edit | None = None,
) -> list[Drawing]:
    """One drawing a text: of up to `candidates` images the one of which the model itself would
    most likely say the text, also of the mirror image where the text is as true of it, drawn anew
    until it is sure. A unified model reads images better than it draws them, and in the mirror
    those that deceived it while it drew (LOG.md); DALL-E (2102.12092, section 2.6) let a
    contrastive model choose among all. edit: what is given of every image. Raises
    NotGenerativeError for a model that cannot draw."""
    drawings: dict[int, Drawing] = {}
    left = list(range(len(texts)))
    for attempt in range(candidates):
        asked = [texts[i] for i in left]
        # Far from the next seed, whose first drawing must not be this one's second.
        seeded = replace(sampling, seed=sampling.seed + attempt * APART)
        images = _images(respond, [(text,) for text in asked], seeded, edit)
        scores = [-math.inf] * len(left)
        if candidates > 1:
            scores = read_back(respond, images, asked)
        for i, image, score in zip(left, images, scores, strict=True):
            known = drawings.setdefault(i, Drawing(image, image, 0, score))
            known.tries += 1
            if score > known.score:
                known.best, known.score = image, score
        left = [i for i in left if drawings[i].score < SURE]
        if not left:
            break
    return [drawings[i] for i in range(len(texts))]


def read_back(
    respond: Generator, images: Sequence[PIL.Image.Image], texts: Sequence[str]
) -> list[float]:
    """log p(text | image) of each pair, nats; where its mirror image may be asked too, the mean
    of both."""
    shown = [
        [p, mirrored(p)] if mirrorable([t]) else [p] for p, t in zip(images, texts, strict=True)
    ]
    seen = [
        Sample((user(Image(side)), assistant(text)))
        for sides, text in zip(shown, texts, strict=True)
        for side in sides
    ]
    found = iter(reply_log_likelihood(respond, seen))
    return [fmean(next(found) for _ in sides) for sides in shown]


def redraw(
    respond: Generator, image: Image, texts: Sequence[str], sampling: SamplingParams
) -> list[PIL.Image.Image]:
    """What the model draws when it is shown an image and told how to change it, one a text.
    Raises NotGenerativeError for a model that cannot draw."""
    return _images(respond, [(image, text) for text in texts], sampling)


def _images(
    respond: Generator,
    asked: Sequence[tuple[Image | str, ...]],
    sampling: SamplingParams,
    edit: Edit | None = None,
) -> list[PIL.Image.Image]:
    drawn: dict[int, PIL.Image.Image] = {}
    samples = [Sample((user(*parts),)) for parts in asked]
    drawing = replace(sampling, max_images=1, draw_first=True)
    for index, piece in respond(samples, drawing, [edit] * len(samples)):
        if piece.image is not None:
            drawn[index] = piece.image
    return [drawn[i] for i in range(len(samples))]
