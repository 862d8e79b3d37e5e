"""What every kind of made image consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import PIL.Image

from chiasm.data.boxes import Box

Content = dict
"""What an image shows, as JSON: the ground truth that all answers are computed from."""


@dataclass(frozen=True)
class Rendered:
    """The image, and where named things of its content lie in it."""

    image: PIL.Image.Image
    boxes: dict[str, Box] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question with its exact answer; `type` groups questions of one skill."""

    type: str
    question: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """draw: a content, from randomness alone.
    key: the part of it that train and test never share.
    render: the image; fonts, colours and layout are drawn anew and are no part of the content.
    ask: the questions; they may depend on the content and the boxes, never on the pixels.
    caption: the content in a few words.
    """

    draw: Callable[[Random], Content]
    key: Callable[[Content], str]
    render: Callable[[Content, Random], Rendered]
    ask: Callable[[Content, Rendered, Random], list[Asked]]
    caption: Callable[[Content], str]
