"""What people have: conversations that mix text and images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import PIL.Image

from chiasm.core import moved
from chiasm.core.errors import DataError
from chiasm.core.image import Unreadable, decode, header_size, read_file, rgb

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """A run of text inside a turn."""

    text: str


@dataclass(frozen=True)
class BoxText(Text):
    """A box or a point of an image as text.

    box: (left, top, right, bottom) or (x, y) as fractions of the width and height of the sample's
    image number `image`. `text` is the box in thousandths; data/boxes.py writes other formats.
    """

    box: tuple[float, ...] = ()
    image: int = 0


@dataclass(frozen=True, eq=False)
class Image:
    """An image, read only when it is needed.

    `source` is a file, the encoded bytes of one, or a decoded image; `where` names the place
    that mentions it (file and line), so that an error can say where to look.
    """

    source: Path | bytes | PIL.Image.Image
    where: str = ""

    def load(self) -> PIL.Image.Image:
        """The decoded image, upright, RGB (see core.image). Raises DataError naming the file,
        the place and the remedy."""
        if isinstance(self.source, PIL.Image.Image):
            return rgb(self.source)
        name = self.source if isinstance(self.source, Path) else "embedded image"
        place = f" ({self.where})" if self.where else ""
        try:
            return decode(self.encoded())
        except FileNotFoundError:
            raise DataError(
                f"{name}: no such image{place}; correct the path or remove the sample"
            ) from None
        except (Unreadable, OSError) as error:
            raise DataError(
                f"{name}: not a readable image: {' '.join(str(error).split())}{place}; "
                "replace the file or remove the sample"
            ) from None

    def size(self) -> tuple[int, int]:
        """(width, height) of what load gives, without decoding it. Raises DataError as load."""
        if isinstance(self.source, PIL.Image.Image):
            return self.source.size
        try:
            return header_size(self.source)
        except (Unreadable, OSError):
            return self.load().size  # raises with the file, the place and the remedy

    def encoded(self) -> bytes:
        """The bytes of the file. Raises OSError or Unreadable; load says where."""
        assert not isinstance(self.source, PIL.Image.Image)
        return read_file(self.source) if isinstance(self.source, Path) else self.source

    def digest(self) -> str:
        """SHA-256 of the encoded bytes, or where there is no file of the pixels that `load` gives
        (the bytes of a palette image are not its colours): the cache key."""
        if isinstance(self.source, PIL.Image.Image):
            loaded = self.load()
            head = f"{loaded.mode}{loaded.size}".encode()
            return hashlib.sha256(head + loaded.tobytes()).hexdigest()
        try:
            return hashlib.sha256(self.encoded()).hexdigest()
        except (Unreadable, OSError):
            self.load()  # raises with the file, the place and the remedy
            raise


@dataclass(frozen=True)
class Video:
    """A clip on disk; decoded by the routes that accept video (data/video.py)."""

    path: Path
    where: str = ""


Part = Text | Image | Video


@dataclass(frozen=True)
class Message:
    """What one side says: parts in reading order.

    supervised: an assistant's message carries loss (False: `"loss": false`, `"weight": 0`).
    """

    role: Role
    content: tuple[Part, ...]
    supervised: bool = True

    def replace(self, **changes) -> Message:
        return dataclasses.replace(self, **changes)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, Text))

    if not TYPE_CHECKING:  # attributes of earlier versions

        def __getattr__(self, name: str) -> object:
            return moved.attribute(self, name)


@dataclass(frozen=True)
class Sample:
    """One conversation.

    independent: the user/assistant pairs are separate questions about the images of the first
        user turn, not a dialogue: no pair may see another. Encoded as branches of one trunk, so
        that the images are computed once and training equals asking each question alone.
    meta: anything the data set says about the sample (JSON).
    rejected: of a preference pair the worse reply, in place of the last assistant message, which is
        the chosen one. desired: of a reply that was judged by itself (KTO) whether it is a good
        one; None where nobody judged it.
    """

    turns: tuple[Message, ...]
    id: str = ""
    source: str = ""
    independent: bool = False
    meta: dict = field(default_factory=dict)
    rejected: tuple[Message, ...] = ()
    desired: bool | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(p for turn in self.turns for p in turn.content if isinstance(p, Image))

    @property
    def all_images(self) -> tuple[Image, ...]:
        """Those of the conversation, then those of the rejected reply."""
        rejected = (p for turn in self.rejected for p in turn.content if isinstance(p, Image))
        return (*self.images, *rejected)

    @property
    def videos(self) -> tuple[Video, ...]:
        return tuple(p for turn in self.turns for p in turn.content if isinstance(p, Video))

    @property
    def name(self) -> str:
        """Its id, or its place where it has none."""
        return self.id or self.where

    @property
    def where(self) -> str:
        """How an error names this sample."""
        return self.meta.get("where") or f"sample '{self.id or self.source or '?'}'"

    def replace(self, **changes) -> Sample:
        return dataclasses.replace(self, **changes)

    def map_parts(self, change: Callable[[Part], Part]) -> Sample:
        """The sample with every part changed, those of the rejected reply too."""
        turns, rejected = (
            tuple(turn.replace(content=tuple(map(change, turn.content))) for turn in of)
            for of in (self.turns, self.rejected)
        )
        return self.replace(turns=turns, rejected=rejected)


Given = Part | str | Path | bytes | PIL.Image.Image
"""What `user` and `assistant` take."""


def user(*parts: Given) -> Message:
    """A user turn. A string is text, also one that spells a file's name; an image is an Image, a
    Path, encoded bytes or a PIL image. Raises TypeError for anything else."""
    return Message("user", tuple(map(_part, parts)))


def assistant(*parts: Given) -> Message:
    """An assistant turn, of parts as `user` takes them."""
    return Message("assistant", tuple(map(_part, parts)))


def _part(part: Given) -> Part:
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, (Path, bytes, PIL.Image.Image)):
        return Image(part)
    if isinstance(part, Part):
        return part
    raise TypeError(f"a {type(part).__name__} is no part of a message; give text or an image")


def split_independent(sample: Sample) -> list[Sample]:
    """The separate conversations of an independent sample: the first user turn's images and any
    system turn, with one question and its answer each. Other samples come back as they are."""
    if not sample.independent:
        return [sample]
    system = tuple(t for t in sample.turns if t.role == "system")
    rest = [t for t in sample.turns if t.role != "system"]
    if not rest:
        return [sample]
    images = tuple(p for p in rest[0].content if not isinstance(p, Text))
    result = []
    for i in range(0, len(rest), 2):
        asked = Message("user", (*images, *(p for p in rest[i].content if isinstance(p, Text))))
        reply = tuple(rest[i + 1 : i + 2])
        result.append(
            Sample(
                (*system, asked, *reply), f"{sample.id}/{i // 2}", sample.source, False, sample.meta
            )
        )
    return result


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
