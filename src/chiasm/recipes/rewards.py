"""Rewards of replies by name: the metrics of evaluation, images read by the model itself, and
functions of the user's own. Several are added with their weights."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.registry import REFERENCE, nearest, own_function
from chiasm.core.sample import Sample, Text
from chiasm.data.caption import caption_of
from chiasm.eval.metrics.flat_shapes import find_shapes
from chiasm.eval.scoring import METRICS, find_metric
from chiasm.generation.best_of import read_back
from chiasm.train.rollouts import Reward, Rollout

Pair = tuple[Sample, Rollout]
Value = float | Mapping[str, float] | Exception
Batched = Callable[[Sequence[Pair]], list[Value]]
"""What a reply earned, by name where there are several numbers, or why it could not be told."""

Function = Callable[[Sample, Rollout], float | Mapping[str, float]]

DRAWN = ("reads", "shapes")
"""Rewards of images, beside the metrics for text."""


class Rewards:
    """`Score` of train/rollouts.py: the weighted sum of rewards by name. generator: makes a
    Generator of the model as it is, for "reads". time_limit: seconds of one call of a user's
    function. Raises ConfigError for an unknown name."""

    def __init__(self, weights: Mapping[str, float], generator: Any, time_limit: float = 10.0):
        self.weights = dict(weights)
        self.functions = {name: _batched(name, generator, time_limit) for name in weights}

    def __call__(self, replies: Sequence[Pair]) -> list[Reward]:
        """A reply for which one of the rewards fails, or is not finite, has none."""
        values = {name: function(replies) for name, function in self.functions.items()}
        return [
            self._of_one({name: own[i] for name, own in values.items()})
            for i in range(len(replies))
        ]

    def _of_one(self, values: Mapping[str, Value]) -> Reward:
        total, parts = 0.0, {}
        for name, value in values.items():
            if isinstance(value, Exception):
                return Reward(None)
            named = value if isinstance(value, Mapping) else {"": value}
            own = sum(named.values())
            if not math.isfinite(own):
                return Reward(None)
            total += self.weights[name] * own
            parts |= {f"{name}/{part}" if part else name: number for part, number in named.items()}
        return Reward(total, parts)


def _batched(name: str, generator: Any, time_limit: float) -> Batched:
    if name == "reads":
        return lambda replies: _reads(replies, generator)
    if name == "shapes":
        return lambda replies: [_tried(_shapes, *pair) for pair in replies]
    if name in METRICS:
        metric = find_metric(name)
        return lambda replies: [_tried(_measured, metric, *pair) for pair in replies]
    if REFERENCE.fullmatch(name):
        function = own_function(name)
        return lambda replies: [_timed(function, *pair, time_limit) for pair in replies]
    known = (*METRICS, *DRAWN)
    raise ConfigError(
        f"unknown reward '{name}'{nearest(name, known)}; there are {', '.join(known)}, or "
        "module:function of your own"
    )


def _tried(function: Callable[..., Value], *given: Any) -> Value:
    try:
        return function(*given)
    except Exception as error:  # a user's own can raise anything; it costs this reply alone
        return error


def _measured(metric: Any, sample: Sample, reply: Rollout) -> float:
    """A metric's main score of a reply against the data's own reply and its meta."""
    reference = sample.turns[-1]
    if reference.role != "assistant" or not reference.text.strip():
        raise DataError(f"{sample.where}: no reply in words to compare with")
    meta = {"reference": reference.text.strip(), "where": sample.where, **sample.meta}
    return metric.score(meta, reply.text)["correct"]


def _timed(function: Function, sample: Sample, reply: Rollout, seconds: float) -> Value:
    """The function's value, or a TimeoutError; a call that never returns keeps a thread, which
    does not keep the process."""
    found: list[Value] = []
    thread = threading.Thread(
        target=lambda: found.append(_tried(function, sample, reply)), daemon=True
    )
    thread.start()
    thread.join(seconds)
    if not found:
        return TimeoutError(f"no reward within {seconds} seconds")
    return found[0]


def _reads(replies: Sequence[Pair], generator: Any) -> list[Value]:
    """The probability, given the image drawn, that the model itself gives its prompt as caption,
    the geometric mean with that of the mirrored image where the words are as true of it."""
    texts = [_prompt(sample) for sample, _ in replies]
    drawn = [i for i, (_, reply) in enumerate(replies) if reply.images and texts[i]]
    values: list[Value] = [DataError("no image was drawn") for _ in replies]
    with generator() as respond:
        scores = read_back(
            respond, [replies[i][1].images[0] for i in drawn], [texts[i] for i in drawn]
        )
    for i, score in zip(drawn, scores, strict=True):
        values[i] = math.exp(score)
    return values


def _prompt(sample: Sample) -> str:
    """What was asked to be drawn."""
    asked = [turn for turn in sample.turns if turn.role == "user"]
    return (
        "".join(part.text for part in asked[-1].content if isinstance(part, Text)) if asked else ""
    )


def _shapes(sample: Sample, reply: Rollout) -> float:
    """1 where rules find the shape and colour of meta (or of the caption's words) in the image
    (metrics/flat_shapes.py), 0.5 for one of both."""
    if not reply.images:
        raise DataError("no image was drawn")
    words = (caption_of(sample) or _prompt(sample)).split()
    seen = find_shapes(reply.images[0])
    if not seen:
        return 0.0
    return 0.5 * (seen[0].name in words) + 0.5 * (seen[0].color in words)
