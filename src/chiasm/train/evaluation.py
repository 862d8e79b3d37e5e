"""Evaluation between training steps: what the loop passes in, what comes back, and what is kept.

Ranks share the work: each evaluates its part and returns sums, which are added in a fixed order, so
that the metrics do not depend on the number of ranks.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError
from chiasm.train.checkpoint import write_whole
from chiasm.train.parallel import World
from chiasm.train.stage import Stage

Sums = dict[str, tuple[float, float]]
"""Metric -> (sum, count); its value is sum / count."""


@dataclass(frozen=True)
class EvalContext:
    """stage: the one being trained; step: of the whole run; world: ranks that share the work."""

    stage: Stage
    step: int
    world: World


@dataclass(frozen=True)
class Answer:
    """The model's reply to a held-out question. number: of the question; image: path of its first
    image, "" where it is no file; correct in [0, 1], None where the question could not be asked
    (error says why)."""

    number: int
    id: str
    image: str
    question: str
    reference: str
    reply: str = ""
    correct: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Drawing:
    """An image generated from a held-out caption."""

    prompt: str
    image: PIL.Image.Image


@dataclass
class EvalResult:
    """What one rank found.

    sums: (order, sums) of parts of the work; the parts of all ranks are added in this order.
    answers: to its share of the questions. images: of the questions to be shown, by number;
    drawings: both of the main rank only.
    """

    sums: list[tuple[int, Sums]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    images: dict[int, PIL.Image.Image | None] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> EvalResult:
        """The result of an evaluation that one rank does for all."""
        return cls([(0, {name: (value, 1.0) for name, value in metrics.items()})])

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> mean. Metrics that nothing was counted for are left out."""
        total: dict[str, tuple[float, float]] = {}
        for _, sums in sorted(self.sums, key=lambda part: part[0]):
            for name, (value, count) in sums.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + value, before[1] + count)
        return {name: value / count for name, (value, count) in total.items() if count}


Evaluate = Callable[[EvalContext], EvalResult]


def gather(own: EvalResult | None, world: World) -> EvalResult | None:
    """The results of all ranks as one; None where a rank was interrupted. All ranks call it."""
    sent = None
    if own is not None:
        sent = {"sums": own.sums, "answers": [asdict(answer) for answer in own.answers]}
    found = world.gather(sent)
    if own is None or any(part is None for part in found):
        return None
    sums = [(int(order), dict(each)) for part in found for order, each in part["sums"]]
    answers = [Answer(**answer) for part in found for answer in part["answers"]]
    answers.sort(key=lambda answer: answer.number)
    return EvalResult(sums, answers, own.images, own.drawings)


def check_stages(stages: Sequence[Stage], evaluate: object | None, reason: str = "") -> None:
    """ConfigError for a stage that asks for an evaluation that cannot be had. evaluate: None where
    nothing can be evaluated, for this reason."""
    for stage in stages:
        if stage.best_metric and not stage.evaluate_every:
            raise ConfigError(
                f"stage '{stage.name}': best_metric is '{stage.best_metric}', but the stage never "
                "evaluates; set evaluate_every to a number of steps"
            )
        if stage.evaluate_every and evaluate is None:
            raise ConfigError(
                f"stage '{stage.name}': evaluate_every is {stage.evaluate_every}, but "
                f"{reason or 'there is nothing to evaluate'}; set it to 0 or give held-out data"
            )


def check_best(stage: Stage, metrics: Sequence[str]) -> str:
    """stage.best_metric without its sign, "" without one. ConfigError where it is none of the
    evaluated metrics."""
    name = stage.best_metric.removeprefix("-")
    if name and name not in metrics:
        raise ConfigError(
            f"stage '{stage.name}': best is '{name}', which is not evaluated"
            f"{nearest(name, metrics)}; there are {', '.join(metrics) or 'no metrics'}"
        )
    return name


def check_metrics(stages: Sequence[Stage], metrics: Sequence[str]) -> None:
    """check_best of every stage that evaluates."""
    for stage in stages:
        if stage.evaluate_every:
            check_best(stage, metrics)


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics in a few characters, which stand first in the live view: its end is cut off where
    the terminal is narrow."""
    kinds = [name for name in metrics if name.endswith("accuracy")]
    shown = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    shown += [f"{name.replace('_', ' ')} {metrics[name]:.0%}" for name in kinds]
    if not shown:
        shown = [f"{name} {value:.4g}" for name, value in list(metrics.items())[:2]]
    return f"eval {'  '.join(shown)}  "


@contextmanager
def rng_preserved(device: torch.device) -> Iterator[None]:
    """Random states of torch, numpy and random are afterwards what they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass(frozen=True)
class Examples:
    """What people look at: a few answers with the image asked about, and the drawings."""

    answers: Sequence[tuple[Answer, PIL.Image.Image | None]]
    drawings: Sequence[Drawing]


def examples_of(result: EvalResult) -> Examples:
    by_number = {answer.number: answer for answer in result.answers}
    shown = [(by_number[n], image) for n, image in result.images.items() if n in by_number]
    return Examples(shown, result.drawings)


class ExampleFolder:
    """FOLDER/samples/step-N: answers.jsonl with every answer, question-K.png beside it for those
    that are shown; drawing-K.png with their prompts in drawings.jsonl.

    On resume, evaluations past the resumed step are removed, as their lines of metrics.jsonl are.
    """

    def __init__(self, folder: Path, resumed_step: int):
        self.folder = folder / "samples"
        for place in self.folder.glob("step-*"):
            found = re.fullmatch(r"step-(\d+)(\.tmp)?", place.name)
            if found and (found[2] or int(found[1]) > resumed_step):
                shutil.rmtree(place, ignore_errors=True)

    def write(self, step: int, result: EvalResult) -> None:
        """Raises OSError where the disk refuses."""
        if not result.answers and not result.drawings:
            return
        place, temporary = self.folder / f"step-{step}", self.folder / f"step-{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for number, image in result.images.items():
            if image is not None:
                image.save(temporary / f"question-{number}.png")
        if result.answers:
            _write_lines(temporary / "answers.jsonl", [asdict(a) for a in result.answers])
        rows = []
        for number, drawing in enumerate(result.drawings):
            drawing.image.save(temporary / f"drawing-{number}.png")
            rows.append({"prompt": drawing.prompt, "file": f"drawing-{number}.png"})
        if rows:
            _write_lines(temporary / "drawings.jsonl", rows)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)


def _write_lines(file: Path, rows: Sequence[dict]) -> None:
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
