"""The one way from the messages of a record to turns, whatever form the record is published in.

Media stand in the text as <image>, <image 2>, <video> or <img>path</img>, or between texts as
parts. A line break beside a placeholder separates it from the text and is no part of it:
"<image>\\nQ" and "Q\\n<image>" are an image and Q, so that all these spellings of a sample are
encoded alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from chiasm.core.config import nearest
from chiasm.core.errors import DataError, PlaceholderError
from chiasm.core.sample import BoxText, Message, Part, Role, Text, Video
from chiasm.core.sample import Image as ImagePart
from chiasm.data.formats.grounding import Objects, box_text, located
from chiasm.data.formats.media_value import to_image, to_video
from chiasm.data.formats.reading import Place, encodable, show

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
PRETRAIN = "pretrain"
"""A role whose content is learnt without a question."""

TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response",
              "ipython")  # fmt: skip

PLACEHOLDER = re.compile(
    r"<(image|video)>(?!.*</\1>)|<image (\d+)>|<(img|video)>([^<>\n]+)</(?:img|video)>"
    r"|<(ref-object|bbox)>"
)
AUDIO = re.compile(r"<audio>[^<>\n]+</audio>")
IN_TEXT = "<IMG_CONTEXT>"
"""Where a text of xtuner's has the image parts of its message."""
PART_TYPES = ("text", "image", "video")
_TYPES = {  # of the OpenAI APIs
    "input_text": "text",
    "output_text": "text",
    "image_url": "image",
    "input_image": "image",
    "video_url": "video",
}
_VALUES = {
    "image": ("image", "image_url", "url", "path", "bytes", "base64"),
    "video": ("video", "video_url", "url", "path"),
}
_PART_KEYS = {"type", "text", "box", "image_number"}


@dataclass
class Said:
    """A message as its record has it: where it stands, who speaks, a text or a list of parts."""

    entry: str
    role: Any
    content: Any
    supervised: bool = True


@dataclass
class Media:
    """What the placeholders of a record stand for: (entry, value) in order, and its objects."""

    images: Sequence[tuple[str, Any]] = ()
    videos: Sequence[tuple[str, Any]] = ()
    objects: Objects | None = None


@dataclass(eq=False)
class _Slot:
    """A placeholder: kind image, video, ref-object or bbox; number of <image 2>, from 0."""

    kind: str
    number: int | None = None


_Item = Part | _Slot | str
"""A string is a text whose placeholders are still words."""


@dataclass
class _Message:
    role: Role
    items: list[_Item]
    supervised: bool = True


def conversation(said: Sequence[Said], media: Media, place: Place) -> tuple[Message, ...]:
    """Turns with their placeholders filled in order.

    Where no placeholder stands for them, images and videos go before the first user's text.
    Raises DataError for a wrong role, order, text or number of placeholders.
    """
    turns = unordered(said, media, place)
    check_order(turns)
    return turns


def unordered(said: Sequence[Said], media: Media, place: Place) -> tuple[Message, ...]:
    """`conversation` whose order of roles may be any."""
    messages = [m for one in said for m in _message(one, place)]
    if not messages:
        raise DataError("no turns; give the conversation or remove the record")
    _find_slots(messages, media)
    slots = [one for m in messages for one in m.items if type(one) is _Slot]
    if slots or media.images or media.videos:
        _prepend(messages, slots, media)
        _check_counts(slots, media)
    return tuple(_fill(messages, media, place))


def _message(said: Said, place: Place) -> list[_Message]:
    if said.role == PRETRAIN:
        items = _items(said, place)
        first = next((i for i, one in enumerate(items) if isinstance(one, (Text, str))), 0)
        shown, text = items[:first], items[first:]
        return [_Message("user", shown), _Message("assistant", text, said.supervised)]
    return [_Message(_role(said.role, said.entry), _items(said, place), said.supervised)]


def _role(role: Any, entry: str) -> Role:
    if type(role) is str and (known := ROLES.get(role)):
        return known
    if role in TOOL_ROLES:
        raise DataError(
            f'{entry} has the unknown role "{role}": tool calls are not read; remove the record'
        )
    if not isinstance(role, str) or role.lower() not in ROLES:
        hint = nearest(role, ROLES) or f"; use {', '.join(ROLES)}"
        raise DataError(f"{entry} has the unknown role {show(role)}{hint}")
    return ROLES[role.lower()]


# A message's content to items


def _items(said: Said, place: Place) -> list[_Item]:
    if isinstance(said.content, str):
        if "<audio>" in said.content and AUDIO.search(said.content):
            raise DataError(f"{said.entry} names audio, which is not read; remove the record")
        return [encodable(said.content, said.entry)]
    entry = f"{said.entry}.content"
    if not isinstance(said.content, (list, tuple)):
        raise DataError(f"{entry} is {show(said.content)}; make it a string or a list of parts")
    return [_part(part, f"{entry}[{i}]", place) for i, part in enumerate(said.content)]


def _part(part: Any, entry: str, place: Place) -> _Item:
    kind = _kind(part)
    if kind not in PART_TYPES:
        found = part.get("type") if isinstance(part, dict) else part
        hint = nearest(found, PART_TYPES) or f"; use {', '.join(PART_TYPES)}"
        raise DataError(f"{entry} has the unknown type {show(found)}{hint}")
    names = (*_VALUES.get(kind, ()), kind)
    for key in part.keys() - _PART_KEYS - {*names}:
        if part[key] is not None:
            place.reading.unused[f"content[].{key}"] += 1
    if kind == "text":
        text = encodable(part.get("text"), f"{entry}.text")
        if part.get("box") is not None:
            return BoxText(text, tuple(part["box"]), part.get("image_number") or 0)
        return Text(text)
    name = next((n for n in names if part.get(n) is not None), None)
    if name is None:
        return _Slot(kind)
    make = to_image if kind == "image" else to_video
    return make(part[name], f"{entry}.{name}", place)


def _kind(part: Any) -> Any:
    """The type of a part; Qwen's parts have none and are told by their key."""
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind is None:
        return next((k for k in ("image", "video", "text") if isinstance(part.get(k), str)), None)
    return _TYPES.get(kind, kind) if isinstance(kind, str) else None


# Placeholders


def _place_parts(message: _Message) -> None:
    """xtuner: image parts stand where the texts of their message have IN_TEXT. Raises
    PlaceholderError where those are not as many."""
    texts = [one for one in message.items if type(one) is Text and IN_TEXT in one.text]
    if not texts:
        return
    images = [one for one in message.items if isinstance(one, ImagePart)]
    found = sum(one.text.count(IN_TEXT) for one in texts)
    if found != len(images):
        raise PlaceholderError(f"{found} {IN_TEXT} but {len(images)} images; make them equal")
    rest = iter(images)
    items: list[_Item] = []
    for one in message.items:
        if type(one) is Text and IN_TEXT in one.text:
            first, *others = one.text.split(IN_TEXT)
            items += [Text(first)] if first else []
            for text in others:
                text = text.removeprefix("\n")
                items += [next(rest), Text(text)] if text else [next(rest)]
        elif not isinstance(one, ImagePart):
            items.append(one)
    message.items = items


def _find_slots(messages: list[_Message], media: Media) -> None:
    """Make slots of the placeholders in texts. Where media stand as parts, a placeholder in a text
    is words; text parts of a list have placeholders only where there are media without a part."""
    for m in messages:
        _place_parts(m)
    explicit = any(isinstance(one, (_Slot, ImagePart, Video)) for m in messages for one in m.items)
    listed = not explicit and bool(media.images or media.videos)
    for m in messages:
        items: list[_Item] = []
        for one in m.items:
            if listed and type(one) is Text:
                one = one.text
            if type(one) is not str:
                items.append(one)
            elif "<" not in one:
                items.append(Text(one))
            else:
                items += _split(one, media, explicit)
        m.items = items


def _split(text: str, media: Media, explicit: bool) -> Iterator[_Item]:
    """A text with its placeholders as slots."""
    pieces: list[_Item] = []
    end = 0
    for found in PLACEHOLDER.finditer(text):
        slot = _slot_of(found, media, explicit)
        if slot is not None:
            pieces += [text[end : found.start()], slot]
            end = found.end()
    pieces.append(text[end:])
    for i, piece in enumerate(pieces):
        if not isinstance(piece, str):
            yield piece
            continue
        if i > 0 and _apart(pieces[i - 1]):
            piece = piece.removeprefix("\n")
        if i < len(pieces) - 1 and _apart(pieces[i + 1]):
            piece = piece.removesuffix("\n")
        if piece or len(pieces) == 1:
            found = located(piece) if "<loc" in piece else ()
            yield from (Text(p) if isinstance(p, str) else p for p in found or (piece,))


def _apart(slot: object) -> bool:
    """Media stand apart from the text; names and boxes of objects and <image 2> are in it."""
    inner = isinstance(slot, _Slot) and (
        slot.kind in ("ref-object", "bbox") or slot.number is not None
    )
    return not inner


@dataclass(eq=False)
class _Named(_Slot):
    """<img>path</img>, <video>path</video>: named where it stands."""

    path: str = field(default="", kw_only=True)


def _slot_of(found: re.Match, media: Media, explicit: bool) -> _Slot | None:
    """What a placeholder stands for; None where it is words."""
    kind, number, tag, path, thing = found.groups()
    if thing:
        return _Slot(thing) if media.objects is not None else None
    if explicit:
        return None
    if path:
        return _Named("image" if tag == "img" else "video", path=path)
    if number:
        there = 0 < int(number) <= len(media.images)
        return _Slot("image", int(number) - 1) if there else None
    # LLaVA-Video writes <image> for its video.
    return _Slot("video" if media.videos and not media.images else kind)


def _prepend(messages: list[_Message], slots: list[_Slot], media: Media) -> None:
    """Media that no placeholder stands for, before the first user's text."""
    images = [slot.number for slot in slots if slot.kind == "image"]
    numbered = {number for number in images if number is not None}
    front: list[_Item] = []
    if numbered or not images:
        front = [_Slot("image", i) for i in range(len(media.images)) if i not in numbered]
    if media.videos and not any(slot.kind == "video" for slot in slots):
        front += [_Slot("video") for _ in media.videos]
    if not front:
        return
    first = next((m for m in messages if m.role == "user"), messages[0])
    if first.items and isinstance(first.items[0], Text):
        text = first.items[0].text.removeprefix("\n")
        first.items[:1] = [Text(text)] if text else []
    first.items[:0] = front


def _check_counts(slots: list[_Slot], media: Media) -> None:
    """The placeholders that a record has itself stand for all of its media."""
    counts = Counter(slot.kind for slot in slots if slot.number is None)
    for kind, values in (("image", media.images), ("video", media.videos)):
        if counts[kind]:
            check_count(kind, counts[kind], len(values))
    if media.objects is None:
        return
    for kind, values in (("ref-object", media.objects.refs), ("bbox", media.objects.boxes)):
        found = counts[kind]
        if found and found != len(values):
            raise PlaceholderError(
                f'{found} <{kind}> in the text but {len(values)} in "objects"; make them equal'
            )


def check_count(kind: str, parts: int, entries: int) -> None:
    """As many placeholders as there are media. Raises PlaceholderError."""
    if parts != entries:
        raise PlaceholderError(
            f"{parts} {kind} part{'s' * (parts != 1)} but {entries} "
            f'{kind}{"s" * (entries != 1)} in "{kind}s"; make them equal'
        )


def _fill(messages: list[_Message], media: Media, place: Place) -> Iterator[Message]:
    if not (media.images or media.videos or media.objects) and not any(
        isinstance(one, _Slot) for m in messages for one in m.items
    ):
        yield from (Message(m.role, tuple(m.items), m.supervised) for m in messages)  # type: ignore[arg-type]
        return
    images = [to_image(value, entry, place) for entry, value in media.images]
    videos = iter([to_video(value, entry, place) for entry, value in media.videos])
    objects = media.objects or Objects()
    rest, refs, boxes = iter(images), iter(objects.refs), iter(objects.boxes)
    shown: set[int] = set()

    def part(slot: _Slot) -> Part:
        if isinstance(slot, _Named):
            make = to_image if slot.kind == "image" else to_video
            return make(slot.path, f"<{slot.kind}>", place)
        if slot.kind == "image":
            if slot.number is None:
                return next(rest)
            if slot.number in shown:
                return Text(f"image {slot.number + 1}")
            shown.add(slot.number)
            return images[slot.number]
        if slot.kind == "video":
            return next(videos)
        if slot.kind == "ref-object":
            return Text(next(refs))
        return box_text(next(boxes), images)

    for m in messages:
        yield Message(m.role, _parts(m.items, part), m.supervised)


def _parts(items: Sequence[_Item], part: Callable[[_Slot], Part]) -> tuple[Part, ...]:
    """The items with their slots filled; words that were put in are one text with their
    neighbours."""
    if not any(isinstance(one, _Slot) for one in items):  # nearly all
        return tuple(items)  # type: ignore[return-value]
    parts: list[Any] = []
    glue = False
    for one in items:
        new = part(one) if isinstance(one, _Slot) else one
        words = isinstance(one, _Slot) and type(new) is Text
        before = parts[-1] if parts else None
        if (words or glue) and type(before) is Text and type(new) is Text:
            parts[-1] = Text(before.text + new.text)
        else:
            parts.append(new)
        glue = words
    return tuple(parts)


def check_order(turns: tuple[Message, ...]) -> None:
    """Users and assistants take turns, the user first; system turns may stand anywhere."""
    spoken = [(i, turn.role) for i, turn in enumerate(turns) if turn.role != "system"]
    roles = [role for _, role in spoken]
    if roles and roles == (["user", "assistant"] * len(roles))[: len(roles)]:
        return
    if not any(role == "user" for _, role in spoken):
        raise DataError("no user turn; add the question or remove the line")
    if spoken[0][1] == "assistant":
        raise DataError("the assistant speaks before the user; put the question first")
    for (i, role), (j, following) in pairwise(spoken):
        if role == following:
            raise DataError(
                f"messages[{i}] and messages[{j}] are both the {role}'s; "
                "join them or add what was said between"
            )
