"""Conversations to token ids with marks of what is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Text, Turn
from chiasm.core.vocab import Vocabulary
from chiasm.data import text as names


@dataclass(frozen=True)
class Tokens:
    """ids with `marker` where a picture goes; supervised says which ids carry loss."""

    ids: list[int]
    supervised: list[bool]


class Template(Protocol):
    """marker: the id that stands for a picture until its slot is known; stop: ids that end a
    reply."""

    marker: int
    stop: tuple[int, ...]

    def render(self, turns: Sequence[Turn], reply: bool) -> Tokens:
        """reply: end with what invites the assistant to speak, instead of after its words."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class RoleTemplate:
    """<s> <user> words and pictures <assistant> words and pictures </s>, for models trained from
    scratch. The end of every assistant turn is supervised too."""

    marker = -1

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        # Words that look like our special tokens are words: they must not become them.
        tokenizer.encode_special_tokens = True
        self.roles = {
            role: self._id(name)
            for role, name in (
                ("system", names.SYSTEM),
                ("user", names.USER),
                ("assistant", names.ASSISTANT),
            )
        }
        self.begin, self.end = self._id(names.BEGIN), self._id(names.END)
        self.stop = (self.end,)

    def _id(self, name: str) -> int:
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise DataError(
                f"the tokenizer has no {name}; train it with chiasm.data.text.train_bpe"
            )
        return found

    def vocabulary(self, codes: int) -> Vocabulary:
        """The shared numbering of this tokenizer's ids and `codes` image codes."""
        return Vocabulary(
            self.tokenizer.get_vocab_size(),
            codes,
            self._id(names.PAD),
            self.begin,
            self.end,
            self._id(names.BEGIN_IMAGE),
            self._id(names.END_IMAGE),
        )

    def render(self, turns: Sequence[Turn], reply: bool) -> Tokens:
        ids, supervised = [self.begin], [False]
        for turn in turns:
            speaks = turn.role == "assistant"
            content = [self.roles[turn.role]]
            for part in turn.parts:
                content += [self.marker] if isinstance(part, Image) else self._words(part)
            ids += content
            supervised += [False] + [speaks] * (len(content) - 1)
            if speaks:
                ids.append(self.end)
                supervised.append(True)
        if reply:
            ids.append(self.roles["assistant"])
            supervised.append(False)
        return Tokens(ids, supervised)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _words(self, part: object) -> list[int]:
        if not isinstance(part, Text):
            raise DataError(f"{type(part).__name__} is not something this model can read")
        return self.tokenizer.encode(part.text, add_special_tokens=False).ids


class ChatTemplate:
    """The language model's own chat template, through its transformers tokenizer.

    What the assistant says and its first end-of-turn token are supervised; they are found by
    rendering the conversation up to each turn, so any template that writes turns in order works.
    system: the system's words where a conversation has none; None leaves them to the template.
    """

    def __init__(self, tokenizer: Any, picture: str = "<image>", system: str | None = None):
        if not tokenizer.chat_template:
            raise DataError("this tokenizer has no chat template; use an instruction-tuned model")
        self.tokenizer, self.picture, self.system = tokenizer, picture, system
        if picture not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [picture]})
        self.marker = tokenizer.convert_tokens_to_ids(picture)
        self.stop = (tokenizer.eos_token_id,)

    def render(self, turns: Sequence[Turn], reply: bool) -> Tokens:
        if self.system is not None and (not turns or turns[0].role != "system"):
            turns = [Turn("system", (Text(self.system),)), *turns]
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        text = self._text(messages, reply)
        spans = [
            (
                len(self._prefix(text, messages[:i], True)),
                len(self._prefix(text, messages[: i + 1], False)),
            )
            for i, turn in enumerate(turns)
            if turn.role == "assistant"
        ]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        supervised = [False] * len(ids)
        for first, last in spans:
            for place, (start, stop) in enumerate(offsets):
                # A token of spaces alone is empty where the tokenizer trims offsets (Llama 3).
                if first <= start and first < stop <= last:
                    supervised[place] = True
                    if ids[place] in self.stop:
                        break
        if not reply and any(supervised):  # what follows the last reply teaches nothing
            length = len(ids) - supervised[::-1].index(True)
            ids, supervised = ids[:length], supervised[:length]
        return Tokens(ids, supervised)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _text(self, messages: list[dict], reply: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=reply
        )

    def _prefix(self, text: str, messages: list[dict], reply: bool) -> str:
        prefix = self._text(messages, reply)
        if not text.startswith(prefix):
            raise DataError(
                "this chat template rewrites earlier turns, so what the assistant said cannot be "
                "found; split the conversation into single replies"
            )
        return prefix

    def _content(self, turn: Turn) -> str:
        words = []
        for part in turn.parts:
            if isinstance(part, Text):
                if self.picture in part.text:
                    raise DataError(
                        f"the text contains '{self.picture}', which stands for a picture"
                    )
                words.append(part.text)
            elif isinstance(part, Image):
                words.append(self.picture)
            else:
                raise DataError(f"{type(part).__name__} is not something this model can read")
        return "".join(words)
