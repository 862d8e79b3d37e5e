"""The one way from samples to arrays, used by training, evaluation, chat and serving."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.core.batch import IGNORE, Batch, Encoded, Slot, pack, shifted
from chiasm.core.errors import DataError
from chiasm.core.protocols import ImageCodec
from chiasm.core.sample import Image, Message, Sample, assistant, split_independent
from chiasm.data.boxes import BoxFormat, written
from chiasm.data.clips import Clips, Frames
from chiasm.data.formats.chat import Messages, conversation_of
from chiasm.data.packing import Size
from chiasm.data.template import Template


@dataclass(frozen=True)
class _Line:
    """One conversation: ids, which are supervised, where its images begin and the last ends."""

    ids: np.ndarray
    supervised: np.ndarray
    images: list[int]
    images_end: int


class Processor:
    """Template and codec together.

    max_length: longest conversation in tokens; later turns are dropped to fit, never an image.
    supervise_images: codes of images in user turns carry loss as well (unified route).
    remember: keep the slots of images already encoded (where encoding costs a network).
    prefix: what the assistant did not say sees itself whole, turn by turn (prefix-LM, PaliGemma).
    An image then depends on the words asked about it, so questions repeat it and share nothing.
    clips: how videos are seen; None refuses them. boxes: how the model writes boxes of objects.
    """

    def __init__(
        self,
        template: Template,
        codec: ImageCodec,
        max_length: int = 2048,
        supervise_images: bool = False,
        remember: bool = False,
        prefix: bool = False,
        clips: Clips | None = None,
        boxes: BoxFormat = "thousandths",
    ):
        self.template, self.codec, self.max_length = template, codec, max_length
        self.supervise_images, self.remember, self.prefix = supervise_images, remember, prefix
        self.clips = clips
        self.boxes: BoxFormat = boxes
        self.shortened: dict[str, int] = {}
        """How many of its last rounds a training sample lost to max_length, by its name."""
        self.slots: MutableMapping[str, Slot] = {}
        """What is remembered, by the images' digests; a server puts a bounded mapping here."""

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        """Width and height in pixels that an image (width, height) is resized to (ImageCodec)."""
        return self.codec.input_size(size)

    def __call__(self, conversations: Sequence[Messages | Sample], packed: bool = True) -> Batch:
        """A batch of conversations, each OpenAI messages or a Sample.

        Replies of the assistant carry loss; a conversation that ends with the user's message is a
        prompt, of which earlier replies carry loss. packed: all in one row without padding, told
        apart by `segment`; otherwise each is a row of its own, padded on the right. The batch is in
        main memory. Raises DataError for a conversation that cannot be encoded.
        """
        samples = [conversation_of(each) for each in conversations]
        if not samples:
            raise DataError("no conversations to encode; give at least one")
        encoded = [self._encode_any(sample) for sample in samples]
        return pack([encoded] if packed else [[each] for each in encoded])

    def _encode_any(self, sample: Sample) -> Encoded:
        """As a prompt where the user has the last word, else as a training sample."""
        if sample.turns and sample.turns[-1].role == "user":
            prompt = self.prompts([sample])[0][0]
            spoken = any(t.role == "assistant" and t.supervised for t in sample.turns)
            if spoken and not (prompt.labels >= 0).any():
                raise DataError(
                    f"{sample.where}: this chat template rewrites earlier turns, so the replies "
                    "that carry loss cannot be found; split the conversation into single replies"
                )
            return prompt
        return self.encode(sample)

    def encode(self, sample: Sample) -> Encoded:
        """A training sample: its conversation, or its independent questions as branches of one
        trunk. Raises DataError for a sample that cannot be used."""
        _check(sample)
        _check_desired(sample)
        lines, slots = self._lines([sample], reply=False)
        if not any(line.supervised.any() for line in lines):
            raise DataError(f"{sample.where}: no assistant words to learn from; add a reply")
        return _merge(lines, slots, sample.id, self.prefix)

    def measure(self, sample: Sample) -> Size:
        """What `encode` would make of a sample, from the headers of its images. Raises DataError
        as encode, but for what only decoding would find."""
        _check(sample)
        _check_desired(sample)
        if sample.videos:  # how many frames a clip has is not in its header
            encoded = self.encode(sample)
            return Size(
                len(encoded), 0 if encoded.image_patches is None else len(encoded.image_patches)
            )
        parts = split_independent(sample)
        slots = [self.codec.outline(image.size()) for image in parts[0].images]
        lines = [self._line(part, slots, reply=False) for part in parts]
        whole = _merge(lines, slots, sample.id, self.prefix)
        if not any(line.supervised.any() for line in lines):
            raise DataError(f"{sample.where}: no assistant words to learn from; add a reply")
        images = slots * (len(lines) if self.prefix else 1)
        return Size(len(whole), sum(slot.grid[0] * slot.grid[1] * slot.tiles for slot in images))

    def unconditional(self, sample: Sample) -> Encoded:
        """The prompt without its words and images: the other side of guidance."""
        bare = sample.replace(turns=tuple(Message(turn.role, ()) for turn in sample.turns))
        lines, slots = self._lines([bare], reply=True)
        return _merge(lines, slots, sample.id, self.prefix)

    def alternatives(self, sample: Sample, replies: Sequence[str]) -> Encoded:
        """`branches` of replies in words."""
        return self.branches(sample, [assistant(reply) for reply in replies])

    def branches(self, sample: Sample, replies: Sequence[Message]) -> Encoded:
        """Several replies to one conversation that ends with the user's turn, as branches of one
        trunk (reply i is branch i + 1; 0 where there is one only). Only they are supervised. Raises
        DataError for a sample that cannot be used, or a reply with an image of a model that cannot
        draw."""
        _check(sample)
        sample = sample if self.clips is None else self.clips.unroll([sample])[0]
        turns = tuple(turn.replace(supervised=False) for turn in sample.turns)
        slots = self._encode_images(sample)
        lines, every = [], list(slots)
        for reply in replies:
            own = self._encode_images(sample.replace(turns=(reply,)))
            if any(slot.image_patches is not None for slot in own):
                raise DataError(
                    f"{sample.where}: a reply holds an image, which this model cannot draw; use a "
                    "unified model or leave the sample out"
                )
            whole = sample.replace(turns=(*turns, reply))
            lines.append(self._line(whole, [*slots, *own], reply=False, whole=True))
            every += own
        if not all(line.supervised.any() for line in lines):
            raise DataError(f"{sample.where}: a reply without a token to learn; give it words")
        return self._branched(sample, lines, every)

    def continued(
        self, sample: Sample, replies: Sequence[tuple[Sequence[int], Sequence[bool]]]
    ) -> Encoded:
        """`branches` of replies that are known as ids: (ids, which of them are supervised)."""
        _check(sample)
        sample = sample if self.clips is None else self.clips.unroll([sample])[0]
        slots = self._encode_images(sample)
        prompt = self._line(sample, slots, reply=True)
        before = np.zeros(len(prompt.ids), bool)
        lines = [
            _Line(
                np.concatenate([prompt.ids, np.asarray(ids, np.int64)]),
                np.concatenate([before, np.asarray(learnt, bool)]),
                prompt.images,
                prompt.images_end,
            )
            for ids, learnt in replies
        ]
        return self._branched(sample, lines, slots)

    def _branched(self, sample: Sample, lines: list[_Line], slots: list[Slot]) -> Encoded:
        """Lines as branches that share all but the last token before their first supervised one,
        from which it is predicted."""
        shared = min(int(line.supervised.argmax()) - 1 for line in lines)
        return _merge(lines, slots, sample.id, self.prefix, shared)

    def prompts(self, samples: Sequence[Sample]) -> list[tuple[Encoded, list[int]]]:
        """Prompts to answer: neighbours that ask about the same single image share a trunk.

        Returns (encoded, indices of its samples); sample j of the list is branch j + 1 (branch 0
        where there is one sample only).
        """
        result = []
        alone = [[i] for i in range(len(samples))]
        for members in alone if self.prefix else _neighbours(samples):
            for i in members:
                _check(samples[i])
            lines, slots = self._lines([samples[i] for i in members], reply=True)
            merged = _merge(lines, slots, samples[members[0]].id, self.prefix)
            result.append((merged, members))
        return result

    def _lines(self, samples: Sequence[Sample], reply: bool) -> tuple[list[_Line], list[Slot]]:
        parts = [part for sample in samples for part in split_independent(sample)]
        parts = parts if self.clips is None else self.clips.unroll(parts)
        slots = self._encode_images(parts[0])
        return [self._line(part, slots, reply) for part in parts], slots

    def _line(self, sample: Sample, slots: list[Slot], reply: bool, whole: bool = False) -> _Line:
        """whole: refuse what is too long instead of dropping later turns."""
        turns = list(written(sample, self.boxes).turns)
        while True:
            tokens = self.template.render(turns, reply)
            length = len(tokens.ids) + sum(len(s.input_ids) - 1 for s in slots)
            if length <= self.max_length:
                return self._expand(tokens.ids, tokens.supervised, slots)
            if (
                reply
                or whole
                or len(turns) <= 3
                or any(isinstance(p, Image) for t in turns[-2:] for p in t.content)
            ):
                raise DataError(
                    f"{sample.where}: {length} tokens, more than the {self.max_length} allowed; "
                    "shorten it or raise model.max_length"
                )
            turns = turns[:-2]
            self.shortened[sample.name] = (len(sample.turns) - len(turns)) // 2

    def _expand(self, ids: list[int], supervised: list[bool], slots: list[Slot]) -> _Line:
        """Put each image's slot where its marker stands."""
        out_ids, out_loss, starts, end, rest = [], [], [], 0, iter(slots)
        for token, loss in zip(ids, supervised, strict=True):
            if token != self.template.marker:
                out_ids.append([token])
                out_loss.append([loss])
                continue
            slot = next(rest)
            learn = (loss or self.supervise_images) and slot.image_patches is None
            starts.append(sum(map(len, out_ids)))
            out_ids.append(slot.input_ids)
            out_loss.append([learn] * len(slot.input_ids))
            end = starts[-1] + len(slot.input_ids)
        joined = np.concatenate(out_ids).astype(np.int64)
        return _Line(joined, np.concatenate(out_loss), starts, end)

    def _encode_images(self, sample: Sample) -> list[Slot]:
        recall = self._recalled if self.remember else self._slot
        return [recall(image) for image in sample.images]

    def _recalled(self, image: Image) -> Slot:
        key = image.digest()
        slot = self.slots.get(key)
        if slot is None:
            slot = self.slots[key] = self._slot(image)
        return slot

    def _slot(self, image: Image) -> Slot:
        if isinstance(image, Frames):
            assert self.clips is not None
            return self.clips.slot(image)
        return self.codec.encode([image.load()])[0]


def _merge(
    lines: list[_Line], slots: list[Slot], name: str, prefix: bool, shared: int | None = None
) -> Encoded:
    """Conversations that begin alike (up to the end of their images, or for `shared` tokens) as
    trunk and branches; of a prefix-LM as branches without a trunk."""
    trunk = 0
    if prefix:
        slots = slots * len(lines)
    elif len(lines) > 1:
        trunk = min(line.images_end for line in lines) if shared is None else shared
        for line in lines[1:]:
            same = line.ids[:trunk] == lines[0].ids[:trunk]
            trunk = trunk if same.all() else int(same.argmin())
    spans = [(lines[0].ids[:trunk], lines[0].supervised[:trunk], 0, 0)] if trunk else []
    for number, line in enumerate(lines):
        branch = number + 1 if len(lines) > 1 else 0
        spans.append((line.ids[trunk:], line.supervised[trunk:], trunk, branch))
    ids = np.concatenate([span[0] for span in spans])
    targets = np.concatenate([_shift(span[0], span[1]) for span in spans])
    position = np.concatenate([np.arange(len(s[0])) + s[2] for s in spans]).astype(np.int64)
    branch = np.concatenate([np.full(len(s[0]), s[3]) for s in spans]).astype(np.int64)
    block = np.concatenate([_turns(s[1]) for s in spans]) if prefix else position.copy()
    patches = [slot.image_patches for slot in slots if slot.image_patches is not None]
    grids = [slot.grid for slot in slots for _ in range(slot.tiles)]
    places = [
        shifted(slot.place, start)
        # Beyond the first line's images are those of other replies, which are codes without places.
        for slot, start in zip(slots, _starts(lines, prefix), strict=False)
        if slot.place is not None
    ]
    return Encoded(
        ids,
        targets,
        block,
        branch,
        position,
        np.concatenate(patches) if patches else None,
        np.array(grids, np.int64) if slots else None,
        name,
        np.concatenate(places) if places else None,
    )


def _starts(lines: list[_Line], prefix: bool) -> list[int]:
    """Where each image's slot begins: in the trunk or the only line, or in every line again."""
    if not prefix:
        return lines[0].images
    before = np.cumsum([0, *(len(line.ids) for line in lines)])
    return [int(b) + p for b, line in zip(before, lines, strict=False) for p in line.images]


def _shift(ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    targets = np.full(len(ids), IGNORE, np.int64)
    targets[:-1] = np.where(supervised[1:], ids[1:], IGNORE)
    return targets


def _turns(supervised: np.ndarray) -> np.ndarray:
    """Blocks [T] of a prefix-LM: each run without loss is one, each token with loss its own. They
    are numbered by their first token, so what is said later (block = position) comes behind."""
    begins = supervised.copy()
    begins[1:] |= supervised[:-1]
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def _neighbours(samples: Sequence[Sample]) -> list[list[int]]:
    """Runs of samples whose only image is the same one, with the same before it."""
    runs: list[list[int]] = []
    previous: tuple | None = None
    for i, sample in enumerate(samples):
        key = _opening(sample) if len(sample.images) == 1 and not sample.videos else None
        if key is not None and key == previous:
            runs[-1].append(i)
        else:
            runs.append([i])
        previous = key
    return runs


def _opening(sample: Sample) -> tuple:
    """Roles and words up to the first image, and which image it is."""
    said: list[object] = []
    for turn in sample.turns:
        said.append(turn.role)
        for part in turn.content:
            if isinstance(part, Image):
                return (*said, part.digest())
            said.append(part)
    return tuple(said)


def _check(sample: Sample) -> None:
    said = [part for turn in sample.turns for part in turn.content]
    if not said or not any(turn.role == "user" for turn in sample.turns):
        raise DataError(f"{sample.where}: an empty conversation; give it a user turn or remove it")


def _check_desired(sample: Sample) -> None:
    if sample.desired is False:
        raise DataError(
            f"{sample.where}: its reply is labelled as a bad one; only a stage with "
            "preference.loss kto learns from it"
        )
