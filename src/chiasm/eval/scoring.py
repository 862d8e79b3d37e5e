"""Metrics by name, as a task uses them: one reply at a time, then all together.

What is right stands in a sample's meta: "reference" always; "answers" (or "captions") where several
are right; "options" (letter -> text); "box" (left, top, right, bottom as fractions of the image).
References are read as replies are: "Yes." is yes, "(b)" is option B. What a reply says in thinking
tags (metrics/thinking.py) is not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from chiasm.core.errors import DataError
from chiasm.core.registry import Registry
from chiasm.eval.metrics.bleu import bleu
from chiasm.eval.metrics.boxes import Box, inside, iou, parse_box, parse_point, scale
from chiasm.eval.metrics.choice import option_of, parse_choice
from chiasm.eval.metrics.cider import cider
from chiasm.eval.metrics.containment import contains, contains_words
from chiasm.eval.metrics.edit import anls, character_error_rate, word_error_rate
from chiasm.eval.metrics.relaxed import relaxed_match
from chiasm.eval.metrics.rouge import rouge_l
from chiasm.eval.metrics.thinking import without_thinking
from chiasm.eval.metrics.vqa import exact_match, fold
from chiasm.eval.metrics.vqa_accuracy import vqa_accuracy
from chiasm.eval.metrics.yes_no import Pope, YesNo, parse_yes_no, pope

Meta = Mapping
Scores = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """measure: what "correct" is called in a table. score: meta and reply -> "correct" in [0, 1],
    "parsed" 0 or 1. summary: what only all replies together can tell. check: raises DataError for a
    reference that no reply could match, before anything is asked."""

    measure: str
    score: Callable[[Meta, str], Scores]
    summary: Callable[[Sequence[Meta], Sequence[str]], Scores] = lambda metas, replies: {}
    check: Callable[[Meta], object] = lambda meta: None


def find_metric(name: str) -> Metric:
    """A metric by name, or module:NAME of the user's own. Raises ConfigError naming the nearest."""
    metric = METRICS.find(name)

    def score(meta: Meta, reply: str) -> Scores:
        return metric.score(meta, without_thinking(reply))

    def summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
        return metric.summary(metas, [without_thinking(reply) for reply in replies])

    return replace(metric, score=score, summary=summary)


def answers_of(meta: Meta) -> list[str]:
    """All right answers of a sample."""
    return list(meta.get("answers") or meta.get("captions") or [meta["reference"]])


def result(correct: float, parsed: bool) -> Scores:
    """The two scores of a reply that every metric has."""
    return {"correct": float(correct), "parsed": float(parsed)}


def _exact(meta: Meta, reply: str) -> Scores:
    return result(any(exact_match(reply, a) for a in answers_of(meta)), bool(fold(reply)))


def _vqa(meta: Meta, reply: str) -> Scores:
    return result(vqa_accuracy(reply, answers_of(meta)), bool(reply.strip()))


def _anls(meta: Meta, reply: str) -> Scores:
    return result(anls(reply, answers_of(meta)), bool(reply.strip()))


def _relaxed(meta: Meta, reply: str) -> Scores:
    right = any(relaxed_match(reply, answer) for answer in answers_of(meta))
    return result(right, bool(reply.strip()))


def _choice(meta: Meta, reply: str) -> Scores:
    """Without options (MMMU has open questions too) an answer must occur in the reply."""
    options = meta.get("options")
    if not options:
        return result(contains_words(reply, answers_of(meta)), bool(fold(reply)))
    letter = parse_choice(reply, options)
    return result(letter == right_option(meta), letter is not None)


def right_option(meta: Meta) -> str | None:
    """The letter of the right option, None for an open question. Raises DataError for a reference
    that is no option."""
    options, reference = meta.get("options"), str(meta["reference"])
    if not options:
        return None
    letter = option_of(reference, options)
    if letter is None:
        raise DataError(
            f"{_where(meta)}: the answer '{reference}' is not one of the options "
            f"({', '.join(options)}); give a letter or an option's text"
        )
    return letter


def _contains(meta: Meta, reply: str) -> Scores:
    right = contains(reply, answers_of(meta), bool(meta.get("verbatim")))
    return result(right, bool(reply.strip()))


def _yes_no(meta: Meta, reply: str) -> Scores:
    said = parse_yes_no(reply)
    return result(said == right_side(meta), said is not None)


def right_side(meta: Meta) -> YesNo:
    """Yes or no, as the reference has it. Raises DataError for one that is neither."""
    side = parse_yes_no(str(meta["reference"]))
    if side is None:
        raise DataError(
            f"{_where(meta)}: the answer '{meta['reference']}' is neither yes nor no; "
            "correct it or choose another --metric"
        )
    return "yes" if side == "yes" else "no"


def _yes_no_summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    return pope_scores(pope(replies, [right_side(meta) for meta in metas]))


def pope_scores(found: Pope) -> Scores:
    """What a table shows of it beside the accuracy."""
    return {name: getattr(found, name) for name in ("precision", "recall", "f1", "yes_ratio")}


def _caption(meta: Meta, reply: str) -> Scores:
    return result(rouge_l(reply, answers_of(meta)), bool(reply.strip()))


def _caption_summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    references = [answers_of(meta) for meta in metas]
    scores = cider(replies, references)
    return {
        "cider": sum(scores) / len(scores),
        **{f"bleu-{n}": bleu(replies, references, n) for n in (1, 4)},
    }


def _transcript(meta: Meta, reply: str) -> Scores:
    wrong = character_error_rate([reply], [meta["reference"]])
    return result(max(0.0, 1 - wrong), bool(reply.strip()))


def _transcript_summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    references = [meta["reference"] for meta in metas]
    return {
        "character_error_rate": character_error_rate(replies, references),
        "word_error_rate": word_error_rate(replies, references),
    }


def _click(meta: Meta, reply: str) -> Scores:
    point = parse_point(reply)
    right = point is not None and inside(_fractions(point, meta), _box(meta))
    return result(right, point is not None)


def _overlap(meta: Meta, reply: str) -> Scores:
    """Correct from an IoU of 0.5 on (RefCOCO's accuracy)."""
    box = parse_box(reply)
    if box is None:
        return {**result(0, False), "iou": 0.0}
    corners = (*_fractions(box[:2], meta), *_fractions(box[2:], meta))
    overlap = iou(Box(*corners), _box(meta))
    return {**result(overlap >= 0.5, True), "iou": overlap}


def _box(meta: Meta) -> Box:
    if "box" not in meta:
        raise DataError(f"{_where(meta)}: no 'box' in its meta to compare with")
    return Box(*meta["box"])


def _where(meta: Meta) -> str:
    return meta.get("where", "a sample")


def _fractions(point: Sequence[float], meta: Meta) -> tuple[float, float]:
    """A point as fractions of the image, from fractions, thousandths, or pixels where the task
    says so: meta "units" is 1 (the default), 1000 or "pixels" with "size" (width, height)."""
    units = meta.get("units", 1)
    width, height = meta["size"] if units == "pixels" else (units, units)
    return scale(Box(*point, *point), 1 / width, 1 / height)[:2]


METRICS: Registry[Metric] = Registry(
    "metric",
    Metric,
    {
        "exact": Metric("accuracy", _exact),
        "vqa": Metric("VQA accuracy", _vqa),
        "anls": Metric("ANLS", _anls),
        "relaxed": Metric("relaxed accuracy", _relaxed),
        "choice": Metric("accuracy", _choice, check=right_option),
        "contains": Metric("accuracy", _contains),
        "yes-no": Metric("accuracy", _yes_no, _yes_no_summary, right_side),
        "caption": Metric("ROUGE-L", _caption, _caption_summary),
        "transcript": Metric("1 - CER", _transcript, _transcript_summary),
        "click": Metric("click accuracy", _click, check=_box),
        "box": Metric("IoU ≥ 0.5", _overlap, check=_box),
    },
)
