"""Asking every question of a task and adding up what came back."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import Respond, Sampling, Task
from chiasm.core.sample import Sample
from chiasm.eval.metrics.interval import bootstrap_mean, wilson
from chiasm.eval.task import Measured, is_open, picture_key

Reply = str | DataError


@dataclass(frozen=True)
class Result:
    """What a task came to. Accuracies are in [0, 1], None where there was no such question.

    n: questions answered; those that could not be asked are in errors (id -> reason) and in no
    accuracy. accuracy_interval: Wilson, 95 %; interval_by_picture: bootstrap over whole pictures,
    wider where the questions of a picture stand or fall together. parse_failures: replies that
    are none of the answers, counted wrong. categories: name -> {"n", "accuracy"}. measure: what a
    task with a metric of its own means by accuracy, a mean of scores in [0, 1], for which the
    intervals are too wide rather than too narrow; metrics: the rest of what it tells (scoring.py).
    """

    task: str
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    interval_by_picture: tuple[float, float]
    open_accuracy: float | None
    yes_no_accuracy: float | None
    parse_failures: int
    seconds: float
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    measure: str = "accuracy"
    metrics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return asdict(self)


def evaluate(
    task: Task,
    respond: Respond,
    sampling: Sampling,
    out: Path | None = None,
    show: Show = Bar,
    chunk: int = 256,
) -> Result:
    """Ask every sample of the task and score the replies.

    out: a file for the predictions, one JSON object a line: id, image (absolute path, or null),
    question, reference, reply, parsed, correct, and error where there is no reply. chunk: how many
    samples the model is handed at once. A sample whose reply fails with DataError is an error, not
    a wrong answer; the others of its chunk are asked again without it. Raises DataError when no
    sample could be answered.
    """
    samples = task.samples()
    began = time.perf_counter()
    rows: list[_Row] = []
    with show(task.name, len(samples), 0) as view:
        for start in range(0, len(samples), chunk):
            asked = samples[start : start + chunk]
            replies = _ask(asked, respond, sampling, view.advance)
            rows += [_row(task, s, reply) for s, reply in zip(asked, replies, strict=True)]
            view.status(_so_far(rows, time.perf_counter() - began))
    seconds = time.perf_counter() - began
    if out is not None:
        _write(out, rows)
    return _summarise(task, rows, seconds)


def majority_baseline(task: Task) -> dict[str, float | None]:
    """What always giving the commonest reference scores: of all questions, and of the open and the
    yes/no ones apart, each with the commonest of its own."""
    kinds = {"accuracy": (True, False), "open_accuracy": (True,), "yes_no_accuracy": (False,)}
    result: dict[str, float | None] = {}
    for name, wanted in kinds.items():
        asked = [s for s in task.samples() if is_open(str(s.meta["reference"])) in wanted]
        counts = Counter(str(sample.meta["reference"]) for sample in asked)
        reply = counts.most_common(1)[0][0] if counts else ""
        result[name] = _mean([task.score(sample, reply)["correct"] for sample in asked])
    return result


@dataclass(frozen=True)
class _Row:
    sample: Sample
    reply: Reply
    score: dict[str, float]

    @property
    def failed(self) -> bool:
        return isinstance(self.reply, DataError)


def _ask(
    samples: Sequence[Sample], respond: Respond, sampling: Sampling, done: Callable[[], None]
) -> list[Reply]:
    """One reply a sample. A DataError ends the whole stream of replies without saying whose it is,
    so those not yet answered are asked again in halves until each failure stands alone."""
    texts = [""] * len(samples)
    finished: set[int] = set()
    failure: DataError | None = None
    try:
        for index, piece in respond(samples, sampling):
            texts[index] += piece.text
            if piece.finish is not None and index not in finished:
                finished.add(index)
                done()
    except DataError as error:
        failure = error
    replies: list[Reply] = list(texts)
    left = [i for i in range(len(samples)) if i not in finished]
    if failure is not None and len(samples) > 1:
        middle = len(left) // 2
        for half in filter(None, (left[:middle], left[middle:])):
            again = _ask([samples[i] for i in half], respond, sampling, done)
            for i, reply in zip(half, again, strict=True):
                replies[i] = reply
        return replies
    for i in left:
        replies[i] = failure or DataError(f"{samples[i].where}: the model never ended its reply")
        done()
    return replies


def _row(task: Task, sample: Sample, reply: Reply) -> _Row:
    return _Row(sample, reply, {} if isinstance(reply, DataError) else task.score(sample, reply))


def _summarise(task: Task, rows: Sequence[_Row], seconds: float) -> Result:
    name = task.name
    errors = {row.sample.id or row.sample.where: str(row.reply) for row in rows if row.failed}
    rows = [row for row in rows if not row.failed]
    if not rows:
        first = next(iter(errors.values()), "the task is empty")
        raise DataError(f"task '{name}': none of {len(errors)} samples could be asked; {first}")
    correct = [row.score["correct"] for row in rows]
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[str(row.sample.meta.get("category", "all"))].append(row.score["correct"])
    return Result(
        task=name,
        n=len(rows),
        accuracy=sum(correct) / len(rows),
        accuracy_interval=wilson(sum(correct), len(rows)),
        interval_by_picture=bootstrap_mean(correct, [picture_key(row.sample) for row in rows]),
        open_accuracy=_mean([r.score["correct"] for r in rows if r.score.get("open") == 1]),
        yes_no_accuracy=_mean([r.score["correct"] for r in rows if r.score.get("open") == 0]),
        parse_failures=sum(row.score.get("parsed", 1) == 0 for row in rows),
        seconds=seconds,
        categories={k: {"n": len(v), "accuracy": sum(v) / len(v)} for k, v in groups.items()},
        errors=errors,
        measure=task.measure if isinstance(task, Measured) else "accuracy",
        metrics=_metrics(task, rows),
    )


def _metrics(task: Task, rows: Sequence[_Row]) -> dict[str, float]:
    """Means of the scores beside the main one, and what only all replies together tell."""
    if not isinstance(task, Measured):
        return {}
    names = dict.fromkeys(k for row in rows for k in row.score if k not in ("correct", "parsed"))
    means = {name: sum(row.score[name] for row in rows) / len(rows) for name in names}
    return means | task.summary([(row.sample, str(row.reply)) for row in rows])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _write(out: Path, rows: Sequence[_Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_record(row), ensure_ascii=False) + "\n")


def _record(row: _Row) -> dict:
    images = row.sample.images
    source = images[0].source if images else None
    record = {
        "id": row.sample.id,
        "image": str(source.resolve()) if isinstance(source, Path) else None,
        "question": row.sample.turns[-1].text.strip(),
        "reference": row.sample.meta.get("reference"),
    }
    if isinstance(row.reply, DataError):
        return {**record, "reply": None, "parsed": None, "correct": None, "error": str(row.reply)}
    return {
        **record,
        "reply": row.reply,
        "parsed": row.score.get("parsed"),
        "correct": row.score["correct"],
    }


def _so_far(rows: Sequence[_Row], seconds: float) -> str:
    right = [row.score["correct"] for row in rows if not row.failed]
    failed = len(rows) - len(right)
    return (
        (f"{sum(right) / len(right):.1%} right  " if right else "")
        + (f"[red]{failed} failed[/]  " if failed else "")
        + f"{len(rows) / max(1e-9, seconds):,.0f}/s"
    )
