"""Conversations to token ids with marks of what is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jinja2 import TemplateError
from tokenizers import Tokenizer

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Message, Text
from chiasm.core.vocab import Vocabulary
from chiasm.data import text as names
from chiasm.data.control_tokens import ControlTokens, Hidden


@dataclass(frozen=True)
class Tokens:
    """ids with `marker` where an image goes; supervised says which ids carry loss."""

    ids: list[int]
    supervised: list[bool]


class Template(Protocol):
    """marker: the id that stands for an image until its slot is known; stop: ids that end a
    reply."""

    marker: int
    stop: tuple[int, ...]

    def render(self, turns: Sequence[Message], reply: bool) -> Tokens:
        """reply: end with what invites the assistant to speak, instead of after its words."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class RoleTemplate:
    """<s> <user> words and images <assistant> words and images </s>, for models trained from
    scratch. The end of every assistant turn is supervised too. A tokenizer may lack <user> and
    <system> (Chameleon's has no such tokens): those turns are then not announced."""

    marker = -1

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        # Words that look like our special tokens are words: they must not become them.
        tokenizer.encode_special_tokens = True
        self.assistant = self._id(names.ASSISTANT)
        roles = {"system": names.SYSTEM, "user": names.USER, "assistant": names.ASSISTANT}
        found = {role: tokenizer.token_to_id(name) for role, name in roles.items()}
        self.roles = {role: [] if number is None else [number] for role, number in found.items()}
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
        find, sides = self.tokenizer.token_to_id, 0
        while find(names.SIDE.format(sides + 1)) is not None:
            sides += 1
        return Vocabulary(
            self.tokenizer.get_vocab_size(),
            codes,
            self._id(names.PAD),
            self.begin,
            self.end,
            self._id(names.BEGIN_IMAGE),
            self._id(names.END_IMAGE),
            find(names.MASK),
            find(names.ROW_END),
            sides,
        )

    def render(self, turns: Sequence[Message], reply: bool) -> Tokens:
        ids, supervised = [self.begin], [False]
        for turn in turns:
            speaks = turn.role == "assistant"
            content = list(self.roles[turn.role])
            for part in turn.content:
                content += [self.marker] if isinstance(part, Image) else self._words(part)
            ids += content
            announced = len(self.roles[turn.role])
            learnt = speaks and turn.supervised
            supervised += [False] * announced + [learnt] * (len(content) - announced)
            if speaks:
                ids.append(self.end)
                supervised.append(learnt)
        if reply:
            ids.append(self.assistant)
            supervised.append(False)
        return Tokens(ids, supervised)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _words(self, part: object) -> list[int]:
        if not isinstance(part, Text):
            raise DataError(f"{type(part).__name__} is not something this model can read")
        return self.tokenizer.encode(part.text, add_special_tokens=False).ids


Content = Literal["text", "parts"]
"""What a chat template is told of a message: one text, or a list of texts and images."""


def content_of(tokenizer: Any, image: str) -> Content:
    """What a tokenizer's chat template takes: "parts" where it writes the image's token for an
    image part, else "text"."""
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    except Exception:  # a template written for text fails in its own way
        return "text"
    return "parts" if image in text else "text"


def template_class(content: Content) -> type[ChatTemplate]:
    """The template that tells a chat template so."""
    return PublishedTemplate if content == "parts" else ChatTemplate


class ChatTemplate:
    """The language model's own chat template, through its transformers tokenizer.

    What the assistant says and the special token that ends its turn are supervised. Where a reply
    begins is found by rendering what was said before it, so any template that writes turns in order
    works, also one that leaves out the thinking of earlier turns (Qwen3).
    What people wrote is tokenized as words even where it looks like a control token
    (control_tokens).
    system: the system's words where a conversation has none; None leaves them to the template.
    spoken: special tokens that people may write (model.extra_special_tokens); those that the
    chat template itself writes are not among them.
    stop: further ids that end a reply (a generation_config's), beside the tokenizer's eos and what
    the template writes after a reply (Gemma's <end_of_turn>). Raises DataError for a tokenizer
    without a template, or one whose replies have no special token at the end.
    """

    content: Content = "text"

    def __init__(
        self,
        tokenizer: Any,
        image: str = "<image>",
        system: str | None = None,
        stop: Sequence[int] = (),
        spoken: Sequence[str] = (),
    ):
        if not tokenizer.chat_template:
            raise DataError(
                "this tokenizer has no chat template; use an instruction-tuned model or set "
                "model.chat_template"
            )
        self.tokenizer, self.image, self.system = tokenizer, image, system
        self.spoken = frozenset(t for t in spoken if t not in tokenizer.chat_template)
        self._known: ControlTokens | None = None
        if image not in tokenizer.get_vocab():
            tokenizer.add_tokens([image], special_tokens=True)
        self.marker = tokenizer.convert_tokens_to_ids(image)
        self._special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        named = {i for i in (tokenizer.eos_token_id, *stop) if i in self._special}
        self.stop = tuple(sorted({self._end_of_turn(), *named}))

    def render(self, turns: Sequence[Message], reply: bool) -> Tokens:
        if self.system is not None and (not turns or turns[0].role != "system"):
            turns = [Message("system", (Text(self.system),)), *turns]
        turns = [turn.replace(content=self._parts(turn)) for turn in turns]
        written = [p.text for turn in turns for p in turn.content if isinstance(p, Text)]
        hidden = self._control.hide(written)
        messages = self._messages(turns, hidden)
        text = self._text(messages, reply)
        spoken = [i for i, t in enumerate(turns) if t.role == "assistant" and t.supervised]
        try:
            spans = [self._span(text, messages, i) for i in spoken]
        except DataError:
            if not reply:
                raise
            spans = []  # a prompt is read as the template writes it: only training needs them
        ids, offsets = self._control.encode(text, hidden, self._begins(text))
        supervised = [False] * len(ids)
        for first, last in spans:
            for place, (start, stop) in enumerate(offsets):
                # A token of spaces alone is empty where the tokenizer trims offsets (Llama 3).
                if start < first or stop <= first:
                    continue
                ends = start >= last and ids[place] in self._special
                supervised[place] = not ends or ids[place] in self.stop
                if ends:
                    break
        if not reply and any(supervised):  # what follows the last reply teaches nothing
            length = len(ids) - supervised[::-1].index(True)
            ids, supervised = ids[:length], supervised[:length]
        return Tokens(ids, supervised)

    def decode(self, ids: Sequence[int]) -> str:
        words = [token for token in ids if token not in self._control.ids]
        return self.tokenizer.decode(words, skip_special_tokens=False)

    @property
    def _control(self) -> ControlTokens:
        """Of the tokenizer as it is now: ways of showing images add tokens to it later."""
        if self._known is None or self._known.size != len(self.tokenizer):
            self._known = ControlTokens(self.tokenizer, self.spoken)
        return self._known

    def _messages(self, turns: Sequence[Message], hidden: Hidden) -> list[dict]:
        return [{"role": turn.role, "content": self._content(turn, hidden)} for turn in turns]

    def _parts(self, turn: Message) -> tuple[Text | Image, ...]:
        """A turn's parts; texts that only together hold what looks like a control token are
        one."""
        parts: list[Text | Image] = []
        for part in turn.content:
            if not isinstance(part, (Text, Image)):
                raise DataError(f"{type(part).__name__} is not something this model can read")
            last = parts[-1] if parts else None
            if (
                isinstance(last, Text)
                and isinstance(part, Text)
                and self._control.join(last.text, part.text)
            ):
                parts[-1] = Text(last.text + part.text)
            else:
                parts.append(part)
        return tuple(parts)

    def _begins(self, text: str) -> bool:
        """Whether the tokenizer is to put before and behind a text what it usually does."""
        return False

    def _text(self, messages: list[dict], reply: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=reply
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from None

    def _span(self, text: str, messages: list[dict], turn: int) -> tuple[int, int]:
        """From where the assistant is invited to speak to the end of its words."""
        before = self._text(messages[:turn], True)
        return len(before), _end(text, before, self._said(messages[turn]))

    def _said(self, message: dict) -> str:
        return message["content"].strip()

    def _end_of_turn(self) -> int:
        """The special token that the template writes after a reply."""
        word = "word"
        asked = Message("user", (Text("?"),)), Message("assistant", (Text(word),))
        text = self._text(self._messages(asked, self._control.hide(())), False)
        tail = self.tokenizer(text[text.rindex(word) + len(word) :], add_special_tokens=False)
        for token in tail["input_ids"]:
            if token in self._special:
                return token
        raise DataError(
            "this chat template writes no special token after a reply, so a model could not learn "
            "to stop; end replies with {{ eos_token }} or one of model.extra_special_tokens"
        )

    def _content(self, turn: Message, hidden: Hidden) -> Any:
        """What the chat template is told of a turn."""
        return "".join(
            hidden(part.text) if isinstance(part, Text) else self.image for part in turn.content
        )


class PublishedTemplate(ChatTemplate):
    """The chat template of a published vision language model, as transformers' processors use it.

    It is told text and images as parts of a list; what the tokenizer puts before a text is put
    there, unless the template writes it; and where the template ends replies with nothing (LLaVA
    1.5's), they end with the tokenizer's eos as in their training.
    """

    content = "parts"
    completes = False
    """Whether replies are ended here."""

    def _begins(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def _text(self, messages: list[dict], reply: bool) -> str:
        text = super()._text(messages, reply)
        if not self.completes:
            return text
        parts, done = [], 0
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = super()._text(messages[:place], True)
                end = _end(text, before, self._said(message))
                parts += [text[done:end], self.tokenizer.eos_token]
                done = end
        return "".join([*parts, text[done:]])

    def _end_of_turn(self) -> int:
        try:
            return super()._end_of_turn()
        except DataError:
            if self.tokenizer.eos_token_id is None:
                raise
        self.completes = True
        return self.tokenizer.eos_token_id

    def _said(self, message: dict) -> str:
        return "".join(part.get("text", "") for part in message["content"]).strip()

    def _content(self, turn: Message, hidden: Hidden) -> Any:
        return [
            {"type": "text", "text": hidden(part.text)}
            if isinstance(part, Text)
            else {"type": "image"}
            for part in turn.content
        ]


def _end(text: str, before: str, words: str) -> int:
    """Where `words`, said after what is `before`, end in the text."""
    place = text.find(words, len(before))
    if not text.startswith(before) or place < 0:
        raise DataError(
            "this chat template rewrites earlier turns, so what the assistant said cannot be "
            "found; split the conversation into single replies"
        )
    return place + len(words)
