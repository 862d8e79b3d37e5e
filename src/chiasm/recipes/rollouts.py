"""Replies sampled by the serving engine inside the training process, for rollouts and data."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from chiasm.core.device import model_device
from chiasm.core.errors import DataError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor
from chiasm.generation.generator import Generator
from chiasm.nn.eval_mode import evaluating
from chiasm.nn.precision import Precision
from chiasm.serve.engine import Engine
from chiasm.serve.job import Job, Update
from chiasm.train.compiled import eager
from chiasm.train.evaluation import rng_preserved
from chiasm.train.preference_settings import RolloutSettings
from chiasm.train.rollouts import Prompt, Rollout

MOST_ROWS = 64
"""Replies computed together, at most."""


@dataclass
class _Heard:
    """What the engine said of one reply."""

    text: str = ""
    images: list[PIL.Image.Image] = field(default_factory=list)
    finish: str = ""
    error: Exception | None = None

    def __call__(self, update: Update) -> None:
        self.text += update.text
        if update.image is not None:
            self.images.append(update.image)
        self.finish = update.finish or self.finish
        self.error = update.error or self.error


class Replies:
    """Samples replies with a model as it is at the moment of the call. The processor keeps slots of
    its own, so that those of training stay as they are."""

    def __init__(
        self,
        model: Any,
        processor: Processor,
        precision: Precision = "none",
        compiled: bool = False,
    ):
        self.model, self.compiled = model, compiled
        self.precision: Precision = precision
        self.processor = copy.copy(processor)

    @contextmanager
    def generator(self):
        """A Generator of the model as it is now; training goes on as if it had not been."""
        recent = getattr(self.model, "recent", None)
        self.processor.slots = {}
        uncompiled = eager() if self.compiled else nullcontext()
        with evaluating(self.model), rng_preserved(model_device(self.model)), uncompiled:
            try:
                # Made anew, as it lays out the weights, which were others at the last call.
                yield Generator(self.model, self.processor, precision=self.precision)
            finally:
                if hasattr(self.model, "recent"):
                    self.model.recent = recent

    def __call__(
        self, samples: Sequence[Sample], sampling: Sequence[Sequence[SamplingParams]]
    ) -> list[list[Rollout] | DataError]:
        """As many replies to each conversation as it has ways of sampling, or why it cannot be
        asked. A reply depends on its own sampling alone, not on what is computed beside it."""
        heard = [[_Heard() for _ in ways] for ways in sampling]
        jobs = [
            [Job(sample, way, one) for way, one in zip(ways, own, strict=True)]
            for sample, ways, own in zip(samples, sampling, heard, strict=True)
        ]
        count = sum(map(len, jobs))
        with self.generator() as respond:
            engine = Engine("rollouts", respond, slots=min(count, MOST_ROWS), waiting=count)
            for job in (job for own in jobs for job in own):
                job.began = time.monotonic()
                engine.submit(job)
            engine.drain()
        return [_of_one(own, said) for own, said in zip(jobs, heard, strict=True)]


def _of_one(jobs: Sequence[Job], heard: Sequence[_Heard]) -> list[Rollout] | DataError:
    for one in heard:
        if isinstance(one.error, DataError):
            return one.error
        if one.error is not None:
            raise one.error
    return [
        Rollout(
            one.text,
            tuple(token for token, _ in job.sampled),
            tuple(free for _, free in job.sampled),
            one.finish,
            tuple(one.images),
        )
        for job, one in zip(jobs, heard, strict=True)
    ]


class RolloutReplies:
    """`Generate` of train/rollouts.py: G seeded replies to each prompt."""

    def __init__(self, replies: Replies, settings: RolloutSettings):
        self.replies, self.settings = replies, settings

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[Rollout] | DataError]:
        ways = [[sampling_of(self.settings, prompt, seed) for seed in prompt.seeds]
                for prompt in prompts]  # fmt: skip
        return self.replies([prompt.asked for prompt in prompts], ways)


def sampling_of(settings: RolloutSettings, prompt: Prompt, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        max_images=int(prompt.draws),
        draw_first=prompt.draws,
        seed=seed,
    )
