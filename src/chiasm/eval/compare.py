"""Models on the same questions: who is better, where, and whether that is more than luck."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from chiasm.core.errors import DataError
from chiasm.eval.metrics.interval import mean_interval
from chiasm.eval.metrics.paired import holm, mcnemar_exact, paired_bootstrap

Record = Mapping
ALPHA = 0.05


@dataclass(frozen=True)
class Bill:
    """What a run cost, its parts included: training FLOPs, seconds, peak bytes; None: not known."""

    flops: float | None = None
    seconds: float | None = None
    peak_memory: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """A model's predictions (predictions.py) by question, and what it cost."""

    name: str
    records: Mapping[str, Record]
    bill: Bill = Bill()


@dataclass(frozen=True)
class Pair:
    """Two contenders on the same questions. difference: mean score of the second less that of the
    first, with a bootstrap interval over images. test: "McNemar" where scores are 0 or 1, else
    "bootstrap". adjusted: p after Holm's correction over all tests of its kind on the page."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    test: str
    p: float
    adjusted: float = 1.0

    @property
    def winner(self) -> str | None:
        """Who is ahead for sure: by the corrected test, and by the interval over images too."""
        low, high = self.interval
        if self.adjusted >= ALPHA or low <= 0 <= high:
            return None
        return self.second if self.difference > 0 else self.first


@dataclass(frozen=True)
class Score:
    """One contender's mean on some questions, with its bootstrap interval over images."""

    name: str
    n: int
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Category:
    """The questions of one kind under every contender, and all pairs of them."""

    name: str
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Comparison:
    """questions: those that all contenders answered, in order; left_out: how many some did not.
    turns: the same as categories by the place of a question in its conversation."""

    contenders: tuple[ModelResult, ...]
    questions: tuple[str, ...]
    left_out: int
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]
    categories: tuple[Category, ...]
    turns: tuple[Category, ...] = ()

    @property
    def disagreements(self) -> list[str]:
        """Questions that some got right and others wrong."""
        return [
            q
            for q in self.questions
            if len({c.records[q]["correct"] >= 0.5 for c in self.contenders}) > 1
        ]


def compare(contenders: Sequence[ModelResult]) -> Comparison:
    """Raises DataError for fewer than two contenders, two of one name, or no common question."""
    if len(contenders) < 2:
        raise DataError(f"a comparison needs two models, found {len(contenders)}")
    names = [c.name for c in contenders]
    if len(set(names)) < len(names):
        raise DataError(f"two models have the same name: {', '.join(names)}; rename a folder")
    asked = list(dict.fromkeys(q for c in contenders for q in c.records))
    common = [q for q in asked if all(_answered(c, q) for c in contenders)]
    if not common:
        raise DataError(
            f"{' and '.join(names)} have no answered question in common; "
            "evaluate them on the same task, limit and seed"
        )
    kinds: dict[str, list[str]] = defaultdict(list)
    turns: dict[int, list[str]] = defaultdict(list)
    for question in common:
        record = contenders[0].records[question]
        kinds[str(record.get("category", "all"))].append(question)
        if "turn" in record:
            turns[record["turn"]].append(question)
    return Comparison(
        tuple(contenders),
        tuple(common),
        len(asked) - len(common),
        _scores(contenders, common),
        _corrected([_pairs(contenders, common)])[0],
        _categories(contenders, kinds, sorted(kinds, key=lambda name: (-len(kinds[name]), name))),
        _categories(contenders, {f"turn {n}": turns[n] for n in sorted(turns)}),
    )


def _answered(contender: ModelResult, question: str) -> bool:
    return contender.records.get(question, {}).get("correct") is not None


def _categories(
    contenders: Sequence[ModelResult],
    kinds: Mapping[str, list[str]],
    order: Sequence[str] | None = None,
) -> tuple[Category, ...]:
    """Corrected over all categories together; none where there is only one."""
    if len(kinds) < 2:
        return ()
    names = list(order or kinds)
    pairs = _corrected([_pairs(contenders, kinds[name]) for name in names])
    return tuple(
        Category(name, _scores(contenders, kinds[name]), own)
        for name, own in zip(names, pairs, strict=True)
    )


def _scores(contenders: Sequence[ModelResult], questions: Sequence[str]) -> tuple[Score, ...]:
    found = []
    for contender in contenders:
        values = _values(contender, questions)
        interval = mean_interval(values, _images(contender, questions))
        found.append(Score(contender.name, len(values), sum(values) / len(values), interval))
    return tuple(found)


def _pairs(contenders: Sequence[ModelResult], questions: Sequence[str]) -> list[Pair]:
    return [_pair(a, b, questions) for a, b in combinations(contenders, 2)]


def _pair(first: ModelResult, second: ModelResult, questions: Sequence[str]) -> Pair:
    a, b = _values(first, questions), _values(second, questions)
    interval, p = paired_bootstrap(a, b, _images(first, questions))
    pairs = list(zip(a, b, strict=True))
    only_first, only_second = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    binary = {*a, *b} <= {0.0, 1.0}
    return Pair(
        first.name,
        second.name,
        (sum(b) - sum(a)) / len(pairs),
        interval,
        only_first,
        only_second,
        "McNemar" if binary else "bootstrap",
        mcnemar_exact(only_first, only_second) if binary else p,
    )


def _corrected(families: Sequence[Sequence[Pair]]) -> list[tuple[Pair, ...]]:
    values = iter(holm([pair.p for family in families for pair in family]))
    return [tuple(replace(pair, adjusted=next(values)) for pair in family) for family in families]


def _values(contender: ModelResult, questions: Sequence[str]) -> list[float]:
    return [float(contender.records[q]["correct"]) for q in questions]


def _images(contender: ModelResult, questions: Sequence[str]) -> list[str]:
    records = [contender.records[q] for q in questions]
    groups = [
        r.get("image") or r.get("conversation") or q
        for r, q in zip(records, questions, strict=True)
    ]
    return list(map(str, groups))
