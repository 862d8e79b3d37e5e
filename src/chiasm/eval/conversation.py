"""The questions of a conversation: every assistant turn, with what was said before it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Sample, assistant, split_independent
from chiasm.eval.metrics.thinking import without_thinking

Turns = Literal["all", "last"]
"""all: every assistant turn of a conversation is a question. last: its last one only."""

History = Literal["gold", "own"]
"""What stands between the questions of a conversation: its own answers, or the model's replies."""

OF_THE_ANSWER = ("answers", "captions", "options", "choices", "box")
PLACE = "question_of"
"""Key of meta for where in a conversation a question stands: "conversation" (a number that its
questions share), "name", "turn" (from 1), "turns", "images" (keys of all its images)."""


def questions_of(sample: Sample, number: int, turns: Turns = "all") -> list[Sample]:
    """One sample a question: the turns up to the user's, the answer in meta["reference"].

    An assistant turn that no user turn precedes (a greeting) or that has no words (an image) is
    history; assistant turns in a row are one answer. number: of the conversation, kept in
    meta[PLACE] where it has several questions. Meta that says what is right (OF_THE_ANSWER) and
    "category" may be a list with an entry for each question; other meta of the first kind belongs
    to the last question, all else to each. Raises DataError for a conversation that is empty, does
    not end with an answer, or has no answer in words.
    """
    if not sample.turns:
        raise DataError(f"{sample.where}: empty conversation; remove the sample")
    if sample.desired is False:
        raise DataError(
            f"{sample.where}: its reply is labelled as a bad one, which is no reference; "
            "remove the sample"
        )
    singles = split_independent(sample)
    found = [(single, run) for single in singles for run in _checked(single)]
    result = []
    for i, (single, (start, end)) in enumerate(found):
        meta = {
            **_own_meta(sample.meta, i, len(found)),
            "reference": _words(single.turns[start:end]),
        }
        name = single.id
        if turns == "all" and len(found) > len(singles):
            name = f"{single.id}/{i}" if single.id else ""
            meta[PLACE] = {
                "conversation": number,
                "name": single.name,
                "turn": i + 1,
                "turns": len(found),
                "images": [str(image_key(image)) for image in single.images],
            }
        result.append(single.replace(turns=single.turns[:start], id=name, meta=meta))
    if turns == "all" or len(singles) > 1:
        return result
    return result[-1:]


def place_of(sample: Sample) -> Mapping[str, Any]:
    """meta[PLACE], empty for a question that stands alone."""
    return sample.meta.get(PLACE, {})


def with_replies(sample: Sample, replies: Sequence[str]) -> Sample:
    """A question whose conversation's earlier answers are replaced by these replies, what is in
    thinking tags left out, as chats leave it out."""
    turns: list[Message] = []
    end = 0
    for (start, after), reply in zip(_runs(sample.turns), replies, strict=True):
        turns += (*sample.turns[end:start], assistant(without_thinking(reply)))
        end = after
    return sample.replace(turns=(*turns, *sample.turns[end:]))


def group_key(sample: Sample) -> Hashable:
    """Equal for samples about the same images, and for the questions of one conversation. A
    sample without images is its own."""
    place = place_of(sample)
    images = tuple(place.get("images") or (str(image_key(image)) for image in sample.images))
    return images or (place.get("name") or sample.id or id(sample),)


def image_key(image: Image) -> Hashable:
    """Equal for equal images. A path is not opened: a missing file is the error of the sample
    that has it, found when it is asked."""
    return image.source if isinstance(image.source, Path) else image.digest()


def _checked(sample: Sample) -> list[tuple[int, int]]:
    said = sample.turns
    if len(said) < 2 or said[-1].role != "assistant":
        raise DataError(
            f"{sample.where}: the conversation does not end with the assistant's answer; "
            "add the reference answer or remove the sample"
        )
    runs = _runs(said)
    if not runs:
        raise DataError(
            f"{sample.where}: no assistant turn with words follows a user's, so there is nothing "
            "to compare with; use --metric drawing for images, or remove the sample"
        )
    return runs


def _runs(turns: Sequence[Message]) -> list[tuple[int, int]]:
    """(start, end) of the runs of assistant turns with words that follow a user's turn."""
    runs = []
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and i and turns[i - 1].role == "user":
            end = next((j for j in range(i, len(turns)) if turns[j].role != "assistant"), None)
            end = len(turns) if end is None else end
            if _words(turns[i:end]):
                runs.append((i, end))
    return runs


def _words(turns: Sequence[Message]) -> str:
    return "\n".join(words for turn in turns if (words := turn.text.strip()))


def _own_meta(meta: Mapping[str, Any], i: int, count: int) -> dict[str, Any]:
    """What the meta of a conversation says about its i-th question of `count`."""
    if count == 1:
        return dict(meta)
    own = {}
    for key, value in meta.items():
        if key in OF_THE_ANSWER or key == "category":
            if _per_question(key, value, count):
                value = value[i]
            elif key != "category" and i < count - 1:
                value = None
            if value is None:
                continue
        own[key] = value
    return own


def _per_question(key: str, value: object, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    kinds = (str,) if key == "category" else (list, dict)
    return all(one is None or isinstance(one, kinds) for one in value)
