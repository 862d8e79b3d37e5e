"""Asking every question of a task and adding up what came back."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import Generate, SamplingParams, Task
from chiasm.core.sample import Sample
from chiasm.eval.conversation import History, group_key, place_of, with_replies
from chiasm.eval.metrics.interval import mean_interval, wilson
from chiasm.eval.metrics.refusal import is_refusal
from chiasm.eval.metrics.thinking import without_thinking
from chiasm.eval.metrics.vqa import fold
from chiasm.eval.predictions import Predictions, Reply, key_of
from chiasm.eval.task import Measured, is_open


@dataclass(frozen=True)
class Result:
    """What a task came to. Accuracies are in [0, 1], None where there was no such question.

    n: questions answered; those that could not be asked are in errors (id -> reason) and in no
    accuracy. accuracy_interval: Wilson, 95 %; interval_by_image: bootstrap over whole images,
    wider where the questions of an image stand or fall together. parse_failures: replies that
    are none of the answers, refusals: those that decline to answer, truncations: those cut off at
    max_tokens; all are scored like any other. resumed: how many replies were on the disk already,
    which `seconds` does not include. categories: name -> {"n", "accuracy"}; turns: the same by the
    place of a question in its conversation ("1", "2", ...), empty where none has several questions;
    history: what stood between them. measure: what a task
    with a metric of its own means by accuracy, a mean of scores in [0, 1], for which the intervals
    are too wide rather than too narrow; metrics: the rest of what it tells (scoring.py).
    """

    task: str
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    interval_by_image: tuple[float, float]
    open_accuracy: float | None
    yes_no_accuracy: float | None
    parse_failures: int
    seconds: float
    refusals: int = 0
    truncations: int = 0
    resumed: int = 0
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    measure: str = "accuracy"
    metrics: dict[str, float] = field(default_factory=dict)
    turns: dict[str, dict[str, float]] = field(default_factory=dict)
    history: History = "gold"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, by images."""
        return self.interval_by_image

    def to_dict(self) -> dict:
        return asdict(self)


def evaluate(
    task: Task,
    respond: Generate,
    sampling: SamplingParams,
    out: Path | None = None,
    show: Show = Bar,
    chunk: int = 256,
    run: Mapping[str, Any] | None = None,
    groups: Sequence[Hashable] | None = None,
    history: History = "gold",
) -> Result:
    """Ask every sample of the task and score the replies.

    out: a file for the predictions, one JSON object a line, written as replies come: id, image
    (absolute path, or null), question, reference, category, conversation and turn where it has
    several questions, reply, finish, parsed, correct, key, and error where there is no reply. run:
    what the replies depend on (predictions.py); where the file holds replies of the same run they
    are not asked for again, and the result is written beside it. chunk: how many samples the model
    is handed at once; greedy replies do not depend on it in fp32. groups: samples that stand or
    fall together (default: those about the same image). history: "own" puts the model's replies
    between the questions of a conversation: then all first questions are asked, then all second
    ones, and so on. A sample whose reply fails with DataError is an error, not a wrong answer; the
    others of its chunk are asked again without it. Raises DataError when no sample could be
    answered.
    """
    samples = list(task.samples())
    predictions = Predictions(out, run)
    rounds, before = [list(range(len(samples)))], {}
    if history == "own":
        rounds, before = _rounds(samples), _earlier(samples)
    rows: dict[int, _Row] = {}
    keys: dict[int, str] = {}
    resumed = 0

    def left_of(numbers: Sequence[int]) -> list[int]:
        """The questions of a round that have to be asked; rows for the others."""
        nonlocal resumed
        left = []
        for i in numbers:
            earlier = [rows[j] for j in before.get(i, ())]
            samples[i], reply = _prompt(samples[i], earlier)
            keys[i] = key_of(samples[i])
            if reply is None and keys[i] in predictions.known:
                reply = predictions.known[keys[i]]
                resumed += 1
            if reply is None:
                left.append(i)
            else:
                rows[i] = _row(task, samples[i], reply)
        return left

    began = time.perf_counter()
    first = left_of(rounds[0])
    try:
        with show(task.name, len(samples), len(rows)) as view:
            asked_before = 0
            for number, numbers in enumerate(rounds):
                left = first if number == 0 else left_of(numbers)
                for _ in range(len(numbers) - len(left) if number else 0):
                    view.advance()
                for start in range(0, len(left), chunk):
                    asked = left[start : start + chunk]

                    def done(place: int, reply: Reply, asked: list[int] = asked) -> None:
                        i = asked[place]
                        rows[i] = _row(task, samples[i], reply)
                        predictions.append(_record(rows[i], keys[i]))
                        view.advance()

                    _ask([samples[i] for i in asked], respond, sampling, done)
                    asked_before += len(asked)
                    view.status(_so_far(rows.values(), asked_before, time.perf_counter() - began))
    finally:
        predictions.close()
    ordered = [rows[i] for i in range(len(samples))]
    seconds = time.perf_counter() - began
    result = _summarise(task, ordered, seconds, resumed, groups, history)
    records = [_record(row, keys[i]) for i, row in enumerate(ordered)]
    predictions.finish(records, result.to_dict())
    return result


def replies_to(
    samples: Sequence[Sample], respond: Generate, sampling: SamplingParams
) -> list[Reply]:
    """The reply to each sample, an error where it could not be asked; nothing is shown or kept."""
    found: dict[int, Reply] = {}
    _ask(samples, respond, sampling, found.__setitem__)
    return [found[i] for i in range(len(samples))]


def flip_rate(samples: Sequence[Sample], respond: Generate, sampling: SamplingParams) -> float:
    """The share of samples whose reply is another when they are asked one by one instead of all at
    once: 0 in fp32, and what rounding to bfloat16 costs in repeatability. Raises DataError for a
    sample that cannot be asked."""

    def said(part: Sequence[Sample]) -> list[str]:
        texts = [""] * len(part)
        for index, piece in respond(part, sampling):
            texts[index] += piece.text
        return texts

    together = said(samples)
    alone = [said([sample])[0] for sample in samples]
    return sum(a != b for a, b in zip(together, alone, strict=True)) / max(1, len(samples))


def majority_baseline(task: Task) -> dict[str, float | None]:
    """What always giving the commonest reference scores: of all questions, and of the open and the
    yes/no ones apart, each with the commonest of its own."""
    kinds = {"accuracy": (True, False), "open_accuracy": (True,), "yes_no_accuracy": (False,)}
    result: dict[str, float | None] = {}
    for name, wanted in kinds.items():
        asked = [s for s in task.samples() if is_open(str(s.meta["reference"])) in wanted]
        # Spellings of one answer ("Yes", "yes.") are counted together.
        spelled = {fold(text): text for sample in asked if (text := str(sample.meta["reference"]))}
        counts = Counter(fold(str(sample.meta["reference"])) for sample in asked)
        reply = spelled.get(counts.most_common(1)[0][0], "") if counts else ""
        result[name] = _mean([task.score(sample, reply)["correct"] for sample in asked])
    return result


@dataclass(frozen=True)
class _Row:
    sample: Sample
    reply: Reply
    score: dict[str, float]

    @property
    def failed(self) -> bool:
        return bool(self.reply.error)


def _rounds(samples: Sequence[Sample]) -> list[list[int]]:
    """Numbers of the samples by the turn of their conversation that they are."""
    rounds: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        rounds[place_of(sample).get("turn", 1)].append(i)
    return [rounds[turn] for turn in sorted(rounds)]


def _earlier(samples: Sequence[Sample]) -> dict[int, list[int]]:
    """Number of a sample -> numbers of the earlier questions of its conversation."""
    found: dict[int, list[int]] = {}
    conversations: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if place := place_of(sample):
            found[i] = list(conversations[place["conversation"]])
            conversations[place["conversation"]].append(i)
    return found


def _prompt(sample: Sample, earlier: Sequence[_Row]) -> tuple[Sample, Reply | None]:
    """A question with the replies to the earlier ones of its conversation as it is asked; and what
    came of it where one of them failed."""
    failed = next((row for row in earlier if row.failed), None)
    if failed is not None:
        return sample, Reply(error=f"{failed.sample.name} has no reply to go on from")
    return (with_replies(sample, [r.reply.text for r in earlier]) if earlier else sample), None


def _ask(
    samples: Sequence[Sample],
    respond: Generate,
    sampling: SamplingParams,
    done: Callable[[int, Reply], None],
) -> None:
    """Tell `done` of every sample's reply as soon as it is whole. A DataError ends the whole stream
    of replies without saying whose it is, so those not yet answered are asked again in halves until
    each failure stands alone."""
    texts = [""] * len(samples)
    finished: set[int] = set()
    failure: DataError | None = None
    try:
        for index, piece in respond(samples, sampling):
            texts[index] += piece.text
            if piece.finish is not None and index not in finished:
                finished.add(index)
                done(index, Reply(texts[index], piece.finish))
    except DataError as error:
        failure = error
    left = [i for i in range(len(samples)) if i not in finished]
    if failure is not None and len(samples) > 1:
        middle = len(left) // 2
        for half in filter(None, (left[:middle], left[middle:])):
            again = [samples[i] for i in half]
            _ask(again, respond, sampling, lambda i, reply, half=half: done(half[i], reply))
        return
    for i in left:
        done(i, Reply(error=str(failure or f"{samples[i].where}: the model never ended its reply")))


def _row(task: Task, sample: Sample, reply: Reply) -> _Row:
    return _Row(sample, reply, {} if reply.error else task.score(sample, reply.text))


def _summarise(
    task: Task,
    rows: Sequence[_Row],
    seconds: float,
    resumed: int,
    groups: Sequence[Hashable] | None,
    history: History,
) -> Result:
    name = task.name
    errors = {row.sample.name: row.reply.error for row in rows if row.failed}
    images = groups or [group_key(row.sample) for row in rows]
    images = [key for key, row in zip(images, rows, strict=True) if not row.failed]
    rows = [row for row in rows if not row.failed]
    if not rows:
        first = next(iter(errors.values()), "the task is empty")
        raise DataError(f"task '{name}': none of {len(errors)} samples could be asked; {first}")
    correct = [row.score["correct"] for row in rows]
    kinds = _means((_category(row.sample), row.score["correct"]) for row in rows)
    turns = _means(
        (str(place["turn"]), row.score["correct"])
        for row in sorted(rows, key=lambda row: place_of(row.sample).get("turn", 0))
        if (place := place_of(row.sample))
    )
    return Result(
        task=name,
        n=len(rows),
        accuracy=sum(correct) / len(rows),
        accuracy_interval=wilson(sum(correct), len(rows)),
        interval_by_image=mean_interval(correct, images),
        open_accuracy=_mean([r.score["correct"] for r in rows if r.score.get("open") == 1]),
        yes_no_accuracy=_mean([r.score["correct"] for r in rows if r.score.get("open") == 0]),
        parse_failures=sum(row.score.get("parsed", 1) == 0 for row in rows),
        seconds=seconds,
        refusals=sum(is_refusal(without_thinking(row.reply.text)) for row in rows),
        truncations=sum(row.reply.finish == "length" for row in rows),
        resumed=resumed,
        categories=kinds,
        errors=errors,
        measure=task.measure if isinstance(task, Measured) else "accuracy",
        metrics=_metrics(task, rows),
        turns=turns,
        history=history,
    )


def _means(scores: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Name -> {"n", "accuracy"} of (name, score)."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, score in scores:
        found[name].append(score)
    return {k: {"n": len(v), "accuracy": sum(v) / len(v)} for k, v in found.items()}


def _metrics(task: Task, rows: Sequence[_Row]) -> dict[str, float]:
    """Means of the scores beside the main one, and what only all replies together tell."""
    if not isinstance(task, Measured):
        return {}
    names = dict.fromkeys(k for row in rows for k in row.score if k not in ("correct", "parsed"))
    means = {name: sum(row.score[name] for row in rows) / len(rows) for name in names}
    return means | task.summary([(row.sample, row.reply.text) for row in rows])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _category(sample: Sample) -> str:
    return str(sample.meta.get("category", "all"))


def _record(row: _Row, key: str) -> dict:
    images, place = row.sample.images, place_of(row.sample)
    source = images[0].source if images else None
    record = {
        "id": row.sample.id,
        "image": str(source.resolve()) if isinstance(source, Path) else None,
        "question": row.sample.turns[-1].text.strip(),
        "reference": row.sample.meta.get("reference"),
        "category": _category(row.sample),
        **({"conversation": place["name"], "turn": place["turn"]} if place else {}),
        "reply": None,
        "finish": None,
        "parsed": None,
        "correct": None,
        "key": key,
    }
    if row.failed:
        return {**record, "error": row.reply.error}
    scores = {"parsed": row.score.get("parsed"), "correct": row.score["correct"]}
    return {**record, "reply": row.reply.text, "finish": row.reply.finish, **scores}


def _so_far(rows: Iterable[_Row], asked: int, seconds: float) -> str:
    rows = list(rows)
    right = [row.score["correct"] for row in rows if not row.failed]
    failed = len(rows) - len(right)
    return (
        (f"{sum(right) / len(right):.1%} right  " if right else "")
        + (f"[red]{failed} failed[/]  " if failed else "")
        + f"{asked / max(1e-9, seconds):,.0f}/s"
    )
