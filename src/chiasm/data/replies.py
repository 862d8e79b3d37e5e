"""Several replies to one conversation, as branches of one trunk, and packed batches of them.

    trunk 0   image image what colour ?
    branch 1                            red </s>       chosen
    branch 2                            blue </s>      rejected

The conversation, its images included, is computed once, and no reply sees another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from chiasm.core.batch import IGNORE, Batch, Encoded
from chiasm.core.errors import DataError
from chiasm.core.protocols import Parts
from chiasm.core.sample import Message, Sample
from chiasm.data.processor import Processor
from chiasm.data.stream import pack_evenly

CHOSEN, REJECTED, UNRELATED = range(3)
"""Kinds of replies; UNRELATED is another sample's, of which KTO estimates its KL divergence."""


@dataclass(frozen=True)
class EncodedReplies:
    """A conversation with its replies. encoded: reply i is branch i + 1, or branch 0 where there is
    one only. kinds [R]: as CHOSEN. advantages [R], old [N]: of replies that the model sampled,
    their advantages, and the log-probabilities [of supervised tokens] of the policy that did."""

    encoded: Encoded
    kinds: tuple[int, ...]
    advantages: tuple[float, ...] = ()
    old: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def reply(self) -> np.ndarray:
        """[N] int64: the reply of each supervised token, in order."""
        learnt = self.encoded.labels != IGNORE
        return np.maximum(self.encoded.branch_ids[learnt] - 1, 0)

    def reply_keys(self) -> list[bytes]:
        """16 bytes for each reply: of everything that its log-probability depends on beside the
        weights."""
        own, seen = self.encoded, hashlib.blake2b(digest_size=16)
        for array in (own.image_patches, own.image_grids, own.place):
            seen.update(b"-" if array is None else np.ascontiguousarray(array).data)
        images, found = seen.digest(), []
        for number in range(len(self.kinds)):
            there = (own.branch_ids == 0) | (own.branch_ids == number + 1)
            digest = hashlib.blake2b(images, digest_size=16)
            for array in (own.input_ids, own.labels, own.block_ids, own.position_ids):
                digest.update(array[there].data)
            found.append(digest.digest())
        return found


@dataclass(frozen=True)
class ReplyBatch(Batch):
    """A batch whose supervised tokens belong to replies.

    reply [N]: number in the batch of the reply of each supervised token; code [N] bool: whether its
    target is a code of an image. kind, group [R] int64: of each reply, group is its conversation.
    length [R] float32: its supervised tokens. keys: as EncodedReplies'. advantages [R] and old [N]
    float32: of sampled replies. stats: what is logged of how the batch was made.
    """

    reply: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    code: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    kind: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    group: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    length: Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: Tensor | None = None
    old: Tensor | None = None
    keys: tuple[bytes, ...] = ()
    stats: Parts = field(default_factory=dict)

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """[P] and [P] int64: the chosen and the rejected reply of each pair."""
        return self.of_kind(CHOSEN), self.of_kind(REJECTED)

    def of_kind(self, kind: int) -> Tensor:
        """[n] int64: the replies of a kind, on the batch's device."""
        host: ReplyBatch = self.on_host  # type: ignore[assignment]
        found = torch.nonzero(host.kind == kind)[:, 0]
        return found if self.host is None else found.to(self.kind.device)

    def per_reply(self, values: Tensor) -> Tensor:
        """[R] sums of values [N] of the supervised tokens."""
        return values.new_zeros(len(self.kind)).index_add(0, self.reply, values)


def pack_replies(
    row: Sequence[EncodedReplies],
    tokens: int,
    first_code: int | None = None,
    stats: Mapping[str, tuple[float, float]] | None = None,
    keyed: bool = True,
) -> ReplyBatch:
    """One packed row within a budget of tokens. first_code: the first id that is a code of an
    image, None where there is none. keyed: with the keys of the replies."""
    batch = pack_evenly([each.encoded for each in row], tokens)
    counts = [len(each.kinds) for each in row]
    starts = np.cumsum([0, *counts[:-1]])
    reply = np.concatenate([each.reply + start for each, start in zip(row, starts, strict=True)])
    targets = batch.labels.flatten()[batch.supervised]
    advantages = [one for each in row for one in each.advantages]
    old = [one for each in row for one in each.old]
    return ReplyBatch(
        **{f.name: getattr(batch, f.name) for f in fields(batch)},
        reply=torch.from_numpy(reply),
        code=torch.zeros_like(targets, dtype=torch.bool)
        if first_code is None
        else targets >= first_code,
        kind=torch.tensor([kind for each in row for kind in each.kinds]),
        group=torch.from_numpy(np.repeat(np.arange(len(row)), counts)),
        length=torch.from_numpy(np.bincount(reply, minlength=sum(counts))).float(),
        advantages=torch.tensor(advantages) if advantages else None,
        old=torch.tensor(old) if old else None,
        keys=tuple(key for each in row for key in each.reply_keys()) if keyed else (),
        stats=dict(stats or {}),
    )


def first_code_of(processor: Processor) -> int | None:
    """The first id that is a code of an image; None for a model without."""
    vocabulary = processor.codec.vocabulary
    return None if vocabulary is None else vocabulary.first_code


def prompt_of(sample: Sample) -> tuple[Sample, Message]:
    """The conversation up to its last reply, of which nothing is learnt, and that reply. Raises
    DataError for a sample that does not end with one."""
    if sample.independent:
        raise DataError(
            f"{sample.where}: independent questions with several replies each; give one question "
            "a sample"
        )
    if not sample.turns or sample.turns[-1].role != "assistant":
        raise DataError(f"{sample.where}: does not end with the assistant's reply; add it")
    turns = tuple(turn.replace(supervised=False) for turn in sample.turns[:-1])
    return sample.replace(turns=turns, rejected=()), sample.turns[-1].replace(supervised=True)


def encode_pair(processor: Processor, sample: Sample) -> EncodedReplies:
    """The chosen and the rejected reply of a preference pair. Raises DataError for a sample that is
    none."""
    prompt, chosen = prompt_of(sample)
    if not sample.rejected:
        raise DataError(
            f"{sample.where}: no rejected reply to compare with; add one, or learn from labelled "
            "replies with preference.loss kto"
        )
    found = EncodedReplies(
        processor.branches(prompt, [chosen, *sample.rejected]), (CHOSEN, REJECTED)
    )
    ids, branch = found.encoded.input_ids, found.encoded.branch_ids
    if np.array_equal(ids[branch == 1], ids[branch == 2]):
        raise DataError(f"{sample.where}: chosen and rejected are the same reply; remove it")
    return found


def encode_labelled(processor: Processor, sample: Sample, unrelated: Message) -> EncodedReplies:
    """The replies of a sample whose quality is known (KTO), pairs as two of them, and one that
    another sample got. Raises DataError for a sample that is neither pair nor labelled."""
    prompt, reply = prompt_of(sample)
    if sample.rejected:
        replies, kinds = [reply, *sample.rejected], (CHOSEN, REJECTED)
    elif sample.desired is None:
        raise DataError(
            f"{sample.where}: nothing says whether its reply is a good one; add a label (true or "
            "false) or a rejected reply"
        )
    else:
        replies, kinds = [reply], (CHOSEN if sample.desired else REJECTED,)
    encoded = processor.branches(prompt, [*replies, unrelated])
    return EncodedReplies(encoded, (*kinds, UNRELATED))
