"""Data sets of a model's own replies: the best of several (rejection sampling), or the best and the
worst as preference pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Part, Sample, Text, split_independent
from chiasm.data.dataset import read
from chiasm.data.formats.messages import write_messages
from chiasm.data.load import Split
from chiasm.data.objectives import chat, text_to_image
from chiasm.data.quarantine import Quarantine
from chiasm.recipes.chat import responder
from chiasm.recipes.rewards import Rewards
from chiasm.recipes.rollouts import Replies
from chiasm.train.checkpoint import read_json, write_whole
from chiasm.train.rollouts import Rollout

OBJECTIVES = {"chat": chat, "text_to_image": text_to_image}
REPLIES, SETTINGS = "replies.jsonl", "sampling.json"
WHOLE = ("stop",)
"""How replies end that may be learnt: those that were cut off are not."""

AT_ONCE = 8
"""Prompts whose replies are sampled together and then written."""

Kind = Literal["sft", "preferences"]


@dataclass(frozen=True)
class Asking:
    """How a data set is sampled; the same in every run that goes on with a folder."""

    run: str
    data: str
    split: Split
    objective: str
    n: int
    rewards: dict[str, float]
    temperature: float
    max_tokens: int
    limit: int
    seed: int


@dataclass(frozen=True)
class Found:
    """What became of the prompts: written samples, prompts left out, replies sampled anew, and the
    mean reward of the first reply and of the best one."""

    written: int
    left_out: int
    sampled: int
    first: float
    best: float


def sample_data(
    asking: Asking, out: Path, kind: Kind = "sft", least: float = 1.0, show: Show = Bar
) -> Found:
    """Sample n replies to every prompt, keep them with their rewards in out/replies.jsonl, and
    write out/train.jsonl of the best replies whose reward is at least `least`, or of pairs of the
    best and the worst reply where their rewards differ. A folder that holds some replies of the
    same sampling is gone on with. Raises CheckpointError for one of another."""
    out.mkdir(parents=True, exist_ok=True)
    _check_same(asking, out / SETTINGS)
    quarantine = Quarantine(out / "quarantine.jsonl")
    prompts = list(_prompts(asking, quarantine))
    known = _known(out / REPLIES)
    left = [i for i in range(len(prompts)) if i not in known]
    if left:
        _sample(asking, out, prompts, left, known, quarantine, show)
    chosen = [_written(prompts[i], row, out, kind, least) for i, row in sorted(known.items())]
    samples = [sample for sample in chosen if sample is not None]
    if not samples:
        raise DataError(
            f"{out}: none of {len(prompts)} prompts has replies to learn from; lower --least, or "
            "sample more replies a prompt"
        )
    write_messages(samples, out / "train.jsonl")
    rewards = [[r for r in row["rewards"] if r is not None] for row in known.values()]
    first, best = ([f(r) for r in rewards if r] for f in (lambda r: r[0], max))
    return Found(
        len(samples), len(prompts) - len(samples), len(left) * asking.n,
        float(np.mean(first)), float(np.mean(best)),
    )  # fmt: skip


def _check_same(asking: Asking, file: Path) -> None:
    if file.exists() and read_json(file) != vars(asking):
        raise CheckpointError(
            f"{file.parent}: holds replies that were sampled otherwise ({file.name}); choose "
            "another folder"
        )
    write_whole(file, json.dumps(vars(asking), indent=2))


def _prompts(asking: Asking, quarantine: Quarantine) -> Iterator[Sample]:
    """The questions of the data, each with the data's own reply, in their order."""
    view, count = OBJECTIVES[asking.objective], 0
    for sample in read(asking.data, asking.split, quarantine):
        seen = view(sample, np.random.default_rng(0))
        for one in split_independent(seen) if seen is not None else ():
            if asking.limit and count >= asking.limit:
                return
            if one.turns and one.turns[-1].role == "assistant":
                yield one
                count += 1


def _known(file: Path) -> dict[int, dict]:
    """The rows that are there, without one that a crash cut short."""
    rows = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["prompt"]] = row
    return rows


def _sample(
    asking: Asking,
    out: Path,
    prompts: Sequence[Sample],
    left: Sequence[int],
    known: dict[int, dict],
    quarantine: Quarantine,
    show: Show,
) -> None:
    generator = responder(Path(asking.run))
    replies = Replies(generator.model, generator.processor, generator.precision)
    rewards = Rewards(asking.rewards, replies.generator)
    with (
        show("sampling", len(prompts), len(prompts) - len(left)) as view,
        (out / REPLIES).open("a", encoding="utf-8") as file,
    ):
        for start in range(0, len(left), AT_ONCE):
            numbers = left[start : start + AT_ONCE]
            asked = [prompts[i].replace(turns=prompts[i].turns[:-1]) for i in numbers]
            ways = [_ways(asking, i, prompts[i]) for i in numbers]
            for i, own in zip(numbers, replies(asked, ways), strict=True):
                view.advance()
                if isinstance(own, DataError):
                    quarantine.sample(prompts[i], own)
                    continue
                earned = rewards([(prompts[i], one) for one in own])
                row = {
                    "prompt": i,
                    "id": prompts[i].id,
                    "replies": [_kept(one, out, f"{i}-{g}") for g, one in enumerate(own)],
                    "rewards": [one.total for one in earned],
                }
                known[i] = row
                file.write(json.dumps(row) + "\n")
                file.flush()


def _ways(asking: Asking, number: int, prompt: Sample) -> list[SamplingParams]:
    draws = any(isinstance(part, Image) for part in prompt.turns[-1].content)
    seeds = [
        int(np.random.SeedSequence((asking.seed, number, g)).generate_state(1, np.uint64)[0] >> 1)
        for g in range(asking.n)
    ]
    return [
        SamplingParams(
            temperature=asking.temperature,
            max_tokens=asking.max_tokens,
            max_images=int(draws),
            draw_first=draws,
            seed=seed,
        )
        for seed in seeds
    ]


def _kept(one: Rollout, out: Path, name: str) -> dict:
    """A reply as JSON, its images as files."""
    files = []
    for n, image in enumerate(one.images):
        files.append(f"images/{name}-{n}.png")
        (out / files[-1]).parent.mkdir(exist_ok=True)
        image.save(out / files[-1])
    return {"text": one.text, "images": files, "finish": one.finish}


def _written(prompt: Sample, row: dict, out: Path, kind: Kind, least: float) -> Sample | None:
    """The sample of the best reply, or of the best and the worst; None where there is nothing to
    learn. Replies that were cut off are neither."""
    ranked = sorted(
        (
            (reward, -g, reply)
            for g, (reward, reply) in enumerate(zip(row["rewards"], row["replies"], strict=True))
            if reward is not None and reply["finish"] in WHOLE
        ),
        key=lambda one: one[:2],
    )
    if not ranked:
        return None
    (low, _, worst), (high, _, best) = ranked[0], ranked[-1]
    turns = (*prompt.turns[:-1], _turn(best, out))
    if kind == "preferences":
        rejected = (_turn(worst, out),)
        return prompt.replace(turns=turns, rejected=rejected) if low < high else None
    return prompt.replace(turns=turns) if high >= least else None


def _turn(reply: dict, out: Path) -> Message:
    parts: list[Part] = [Image(out / name) for name in reply["images"]]
    if reply["text"]:
        parts.append(Text(reply["text"]))
    return Message("assistant", tuple(parts))
