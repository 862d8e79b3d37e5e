"""Preference pairs and labelled replies of a record.

Read are trl's prompt, chosen and rejected (also as whole conversations), LLaMA-Factory's chosen and
rejected beside a conversation, ms-swift's rejected_response and rejected_messages, OpenAI's input,
preferred_output and non_preferred_output, and the labels of KTO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.sample import Message, Text
from chiasm.data.formats import forms
from chiasm.data.formats.conversation import ROLES, Media, Said, check_order, unordered
from chiasm.data.formats.forms import Row
from chiasm.data.formats.media_value import listed
from chiasm.data.formats.reading import Place, show

REJECTED = "(rejected)"
"""Key under which a form hands the rejected turns over, beside the sample's meta."""


USERS = frozenset(name for name, role in ROLES.items() if role == "user")


def openai_pair(row: dict[str, Any]) -> None:
    """OpenAI's preference form under our names: `input` holds the messages and the tools."""
    given = row.get("input")
    if "preferred_output" in row and isinstance(given, Mapping) and "messages" in given:
        del row["input"]
        row["messages"] = given["messages"]
        if given.get("tools"):
            row["tools"] = given["tools"]


def pair(
    said: Sequence[Said],
    rejected: Sequence[Said],
    media: Media,
    images: Sequence[tuple[str, Any]],
    place: Place,
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversation with its chosen reply, and the rejected reply.

    The image parts of the rejected reply stand for what is left of the record's images and for
    `images`, its rejected_images. Raises DataError where either reply is missing, is more than one
    message or where both are the same text.
    """
    if [value for _, value in images] == [value for _, value in media.images]:
        images = ()  # ms-swift repeats the prompt's
    both = Media([*media.images, *images], media.videos, media.objects)
    turns = unordered([*said, *rejected], both, place)
    turns, worse = turns[: len(turns) - len(rejected)], turns[len(turns) - len(rejected) :]
    check_order(turns)
    if turns[-1].role != "assistant":
        raise DataError("a rejected reply but no chosen one; add it as chosen")
    if [turn.role for turn in worse] != ["assistant"]:
        raise DataError(
            f"the rejected reply is {len(worse)} messages of {[turn.role for turn in worse]}; give "
            "one message of the assistant's"
        )
    if turns[-1].content == worse[0].content and all(isinstance(p, Text) for p in worse[0].content):
        raise DataError("chosen and rejected are the same reply; remove the record")
    return turns, worse


def rejected_images(row: Row) -> list[tuple[str, Any]]:
    """(entry, value) of the images that the record has for its rejected reply."""
    found = row.find(forms.REJECTED_IMAGES)
    if found is None:
        return []
    return [(f"{found[0]}[{i}]", one) for i, one in enumerate(listed(found[1], found[0]))]


def check_same_prompt(said: Sequence[Said], rejected: Sequence[Said]) -> None:
    """A whole rejected conversation asks what the chosen one asks. Raises DataError where it does
    not: they are no two replies to one prompt."""
    asked = [one.content for one in rejected if one.role in USERS]
    if asked and asked != [one.content for one in said if one.role in USERS]:
        raise DataError(
            "chosen and rejected differ before their last messages, so they are not two replies to "
            "one conversation; split them at the first difference"
        )


def desired_of(row: Row) -> bool | None:
    """Whether the record labels its reply as a good one (KTO); None without a label."""
    for name in forms.DESIRED.names:
        value = row.values.get(name)
        if name not in row.used and isinstance(value, bool):
            row.used.add(name)
            return value
        if name == "desired" and value is not None:
            raise DataError(f'"desired" is {show(value)}; make it true or false')
    return None
