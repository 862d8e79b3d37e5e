"""Rollouts: prompts of the data, replies that the model samples, rewards, advantages, batches.

    prompt 1   reply 1 .. G   rewards   advantages within the group
    prompt 2   reply 1 .. G   rewards   advantages within the group
    ...        one packed batch: every group is a trunk with its replies as branches

A reply's seed is a function of the run's seed, the data shard, the rollout's number, the prompt and
the place in the group, and of nothing before it: a resumed run samples the same replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import PIL.Image

from chiasm.core.batch import Encoded
from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, Text, split_independent
from chiasm.data.objectives import View
from chiasm.data.processor import Processor
from chiasm.data.quarantine import Quarantine
from chiasm.data.replies import CHOSEN, EncodedReplies, ReplyBatch, first_code_of, pack_replies
from chiasm.data.stream import SampleStream
from chiasm.data.turns import MixtureDraw
from chiasm.train.policy_loss import advantages
from chiasm.train.preference_settings import RolloutSettings

Stats = dict[str, tuple[float, float]]
"""Name -> (sum, count)."""

ENOUGH = 1_000_000_000
"""Tokens of a packed batch: the number of prompts says how large it is."""


@dataclass(frozen=True)
class Rollout:
    """A reply that the model sampled. ids [n]: all its tokens, its end included; chosen [n]: those
    that were sampled and not forced by the grammar of images; finish: "stop", or "length" where it
    was cut off at max_tokens. This is what a reward function is given as `reply`."""

    text: str
    ids: tuple[int, ...]
    chosen: tuple[bool, ...]
    finish: str = "stop"
    images: tuple[PIL.Image.Image, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What is asked. sample: the conversation with the data's own reply, which rewards may read;
    asked: the same up to the user's last turn; draws: whether an image is wanted; seeds [G]."""

    sample: Sample
    asked: Sample
    draws: bool
    seeds: tuple[int, ...]


class Generate(Protocol):
    """Samples replies with the model as it is now."""

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[Rollout] | DataError]:
        """G rollouts of each prompt, or why it cannot be asked."""
        ...


@dataclass(frozen=True)
class Reward:
    """What a reply earned: total, None where the rewards could not be had; by name, unweighted."""

    total: float | None
    parts: dict[str, float] = field(default_factory=dict)


class Score(Protocol):
    """Rewards replies."""

    def __call__(self, replies: Sequence[tuple[Sample, Rollout]]) -> list[Reward]: ...


@dataclass
class Group:
    """A prompt's replies to learn from, with their rewards and advantages. spread: the largest
    difference of rewards in the group, those of replies that are not learnt included."""

    prompt: Prompt
    turn: MixtureDraw
    rollouts: list[Rollout]
    rewards: list[float]
    advantages: np.ndarray
    spread: float


class RolloutStream(SampleStream):
    """Endless batches of sampled replies with advantages, made with the model as it is when a batch
    is asked for. model_log_probs: batch -> [N] log-probabilities under the model as it is now, kept
    with a batch that is learnt from several times (settings.updates)."""

    ahead = False
    """Batches are not made before their time (train/micro_batches.py): they depend on the
    weights."""

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Sequence[View],
        processor: Processor,
        settings: RolloutSettings,
        seed: int,
        generate: Generate,
        score: Score,
        model_log_probs: Any,
        quarantine: Quarantine | None = None,
    ):
        super().__init__(samples, views, processor, ENOUGH, seed, quarantine)
        self.settings, self.generate, self.score = settings, generate, score
        self.model_log_probs = model_log_probs
        self.number = 0
        """Rollouts made so far."""
        self._data_shard = 0
        self._used = 0
        self._row: list[EncodedReplies] = []
        self._stats: Stats = {}

    def split(self, data_shard: int, count: int) -> None:
        super().split(data_shard, count)
        self._data_shard = data_shard

    def state_dict(self) -> dict:
        state = super().state_dict() | {"rollouts": self.number}
        if self._row:  # learnt from again: it cannot be sampled again with later weights
            row = [_saved(each) for each in self._row]
            state |= {"used": self._used, "row": row, "stats": self._stats}
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.number, self._used = state["rollouts"], state.get("used", 0)
        self._row = [_restored(each) for each in state.get("row", ())]
        self._stats = {name: (value, n) for name, (value, n) in state.get("stats", {}).items()}

    def _next(self) -> ReplyBatch:
        if self._row:
            self._used += 1
            batch = self._packed(self._row)
        else:
            groups, self._stats = self._groups()
            row = [self._encoded(group) for group in groups]
            batch = self._packed(row)
            if self.settings.updates > 1:
                batch = self._with_old(row, batch)
            self._used = 1
        if self._used >= self.settings.updates:
            self._row = []
        return batch

    def _packed(self, row: Sequence[EncodedReplies]) -> ReplyBatch:
        code = first_code_of(self.processor)
        return pack_replies(row, ENOUGH, code, self._stats, keyed=False)

    def _with_old(self, row: list[EncodedReplies], batch: ReplyBatch) -> ReplyBatch:
        """The batch with the log-probabilities of the policy that sampled it, kept for the next
        updates."""
        old, start = self.model_log_probs(batch), 0
        self._row = []
        for each in row:
            count = len(each.reply)
            own = tuple(old[start : start + count].tolist())
            self._row.append(EncodedReplies(each.encoded, each.kinds, each.advantages, own))
            start += count
        return self._packed(self._row)

    def _groups(self) -> tuple[list[Group], Stats]:
        """Groups to learn from, and what is logged of them and of those left out."""
        settings, seen, kept = self.settings, [], []
        stats: Stats = {}
        for _ in range(1 + settings.resample):
            found = self._sampled(settings.prompts - len(kept), stats)
            seen += found
            kept += [g for g in found if g.spread > 0 or not settings.filter_groups]
            if len(kept) >= settings.prompts:
                break
        if not seen:
            raise DataError(
                "no group of replies has two rewards to compare; the last reward functions all "
                f"failed ({stats})"
            )
        self.number += 1
        stats["groups_used"] = (len(kept), len(seen))
        # A batch must not be empty: a group without spread has advantages of 0 and teaches nothing.
        return kept or seen[:1], stats

    def _sampled(self, count: int, stats: Stats) -> list[Group]:
        """Groups of the next prompts."""
        chosen = []
        while len(chosen) < count:
            turn, prompt = self._next_usable(self._checked)
            self.turns.use(turn)
            chosen.append((turn, self._prompt(prompt, turn)))
        groups = []
        replies = self.generate([prompt for _, prompt in chosen])
        for (turn, prompt), rollouts in zip(chosen, replies, strict=True):
            if isinstance(rollouts, DataError):
                self.quarantine.add(prompt.sample, rollouts, len(self.samples))
                continue
            groups.append((turn, prompt, rollouts))
        flat = [(prompt.sample, one) for _, prompt, rollouts in groups for one in rollouts]
        rewards = iter(self.score(flat))
        made = []
        for turn, prompt, rollouts in groups:
            own = [next(rewards) for _ in rollouts]
            self._count(stats, rollouts, own)
            group = self._group(turn, prompt, rollouts, own)
            if group is not None:
                made.append(group)
                _add(stats, "reward_std", float(np.std(group.rewards)), 1)
        return made

    def _checked(self, sample: Sample) -> Sample:
        if not any(turn.role == "user" for turn in sample.turns):
            raise DataError(f"{sample.where}: asks nothing; add a user turn")
        return sample

    def _prompt(self, sample: Sample, turn: MixtureDraw) -> Prompt:
        """The sample as a prompt; of independent questions one, chosen by the place."""
        parts = split_independent(sample)
        sample = parts[int(turn.randomness().integers(len(parts)))]
        replied = sample.turns[-1].role == "assistant"
        asked = sample.turns[:-1] if replied else sample.turns
        content = sample.turns[-1].content if replied else ()
        draws = any(isinstance(part, Image) for part in content) and not any(
            isinstance(part, Text) for part in content
        )
        seeds = tuple(self._seed(turn, g) for g in range(self.settings.replies))
        return Prompt(sample, sample.replace(turns=asked, rejected=()), draws, seeds)

    def _seed(self, turn: MixtureDraw, g: int) -> int:
        place = (self.turns.seed, self._data_shard, self.number, turn.index, turn.place, g)
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)

    def _group(
        self, turn: MixtureDraw, prompt: Prompt, rollouts: list[Rollout], rewards: list[Reward]
    ) -> Group | None:
        """None where fewer than two replies have a reward, or none is left to learn."""
        pairs = [
            (one, r.total + self._penalty(one))
            for one, r in zip(rollouts, rewards, strict=True)
            if r.total is not None
        ]
        if len(pairs) < 2:
            return None
        ahead = advantages([r for _, r in pairs], self.settings.normalise_deviation)
        learnt = [
            i
            for i, (one, _) in enumerate(pairs)
            if self.settings.truncated != "mask" or one.finish != "length"
        ]
        if not learnt:
            return None
        return Group(
            prompt,
            turn,
            [pairs[i][0] for i in learnt],
            [pairs[i][1] for i in learnt],
            ahead[learnt],
            float(np.ptp([r for _, r in pairs])),
        )

    def _penalty(self, one: Rollout) -> float:
        """What a reply's length costs: nothing up to `overlong` tokens before max_tokens, 1 at
        them."""
        if self.settings.truncated != "penalise":
            return 0.0
        free = self.settings.max_tokens - self.settings.overlong
        return -min(1.0, max(0.0, (len(one.ids) - free) / self.settings.overlong))

    def _count(self, stats: Stats, rollouts: list[Rollout], rewards: list[Reward]) -> None:
        for one, reward in zip(rollouts, rewards, strict=True):
            _add(stats, "reply_tokens", len(one.ids), 1)
            _add(stats, "truncated", float(one.finish == "length"), 1)
            _add(stats, "rewards_failed", float(reward.total is None), 1)
            if reward.total is not None:
                _add(stats, "reward", reward.total, 1)
            for name, value in reward.parts.items():
                _add(stats, f"reward/{name}", value, 1)

    def _encoded(self, group: Group) -> EncodedReplies:
        replies = [(one.ids, one.chosen) for one in group.rollouts]
        encoded = self.processor.continued(group.prompt.asked, replies)
        kinds = (CHOSEN,) * len(replies)
        return EncodedReplies(encoded, kinds, tuple(group.advantages.tolist()))


def _add(stats: Stats, name: str, value: float, count: int) -> None:
    total, number = stats.get(name, (0.0, 0))
    stats[name] = (total + value, number + count)


_COLUMNS = (
    "input_ids",
    "labels",
    "block_ids",
    "branch_ids",
    "position_ids",
    "image_patches",
    "image_grids",
    "place",
)


def _saved(each: EncodedReplies) -> dict:
    """As JSON: floats come back bit for bit."""
    columns = {name: getattr(each.encoded, name) for name in _COLUMNS}
    return {
        "name": each.encoded.name,
        "columns": {k: None if v is None else v.tolist() for k, v in columns.items()},
        "kinds": list(each.kinds),
        "advantages": list(each.advantages),
        "old": list(each.old),
    }


def _restored(saved: dict) -> EncodedReplies:
    columns = {
        name: None if value is None else np.asarray(value, _dtype(name))
        for name, value in saved["columns"].items()
    }
    encoded = Encoded(**columns, name=saved["name"])  # type: ignore[arg-type]
    lists = (tuple(saved[name]) for name in ("kinds", "advantages", "old"))
    return EncodedReplies(encoded, *lists)


def _dtype(name: str) -> Any:
    return np.float32 if name == "patches" else np.int64
