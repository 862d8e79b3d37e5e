"""Metrics by name, as a task uses them: one reply at a time, then all together.

What is right stands in a sample's meta: "reference" always; "answers" (or "captions") where several
are right; "options" (letter -> text); "box" (left, top, right, bottom as fractions of the picture).
References are read as replies are: "Yes." is yes, "(b)" is option B. What a reply says in thinking
tags (metrics/thinking.py) is not scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.eval.metrics.bleu import bleu
from chiasm.eval.metrics.boxes import Box, inside, iou, parse_box, parse_point, scale
from chiasm.eval.metrics.choice import option_of, parse_choice
from chiasm.eval.metrics.cider import cider
from chiasm.eval.metrics.compat import Compat
from chiasm.eval.metrics.containment import contains, contains_words
from chiasm.eval.metrics.edit import anls, character_error_rate, word_error_rate
from chiasm.eval.metrics.relaxed import relaxed_match
from chiasm.eval.metrics.rouge import rouge_l
from chiasm.eval.metrics.thinking import without_thinking
from chiasm.eval.metrics.vqa import exact_match, fold
from chiasm.eval.metrics.vqa_accuracy import vqa_accuracy
from chiasm.eval.metrics.yes_no import YesNo, parse_yes_no, pope

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


def find_metric(name: str, compat: Compat = None) -> Metric:
    """A metric by name. compat: whose habits to repeat (metrics/compat.py); those without a known
    difference ignore it. Raises ConfigError naming the nearest."""
    if name not in METRICS:
        raise ConfigError(
            f"unknown metric '{name}'{nearest(name, METRICS)}; there are {', '.join(METRICS)}"
        )
    metric = METRICS[name](compat)

    def score(meta: Meta, reply: str) -> Scores:
        return metric.score(meta, without_thinking(reply))

    def summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
        return metric.summary(metas, [without_thinking(reply) for reply in replies])

    return replace(metric, score=score, summary=summary)


def answers_of(meta: Meta) -> list[str]:
    """All right answers of a sample."""
    return list(meta.get("answers") or meta.get("captions") or [meta["reference"]])


def _result(correct: float, parsed: bool) -> Scores:
    return {"correct": float(correct), "parsed": float(parsed)}


def _exact(meta: Meta, reply: str) -> Scores:
    return _result(any(exact_match(reply, a) for a in answers_of(meta)), bool(fold(reply)))


def _vqa(compat: Compat, meta: Meta, reply: str) -> Scores:
    return _result(vqa_accuracy(reply, answers_of(meta), compat), bool(reply.strip()))


def _anls(compat: Compat, meta: Meta, reply: str) -> Scores:
    return _result(anls(reply, answers_of(meta), compat=compat), bool(reply.strip()))


def _relaxed(compat: Compat, meta: Meta, reply: str) -> Scores:
    right = any(relaxed_match(reply, a, compat=compat) for a in answers_of(meta))
    return _result(right, bool(reply.strip()))


def _choice(compat: Compat, meta: Meta, reply: str) -> Scores:
    """Without options (MMMU has open questions too) an answer must occur in the reply."""
    options = meta.get("options")
    if not options:
        return _result(contains_words(reply, answers_of(meta)), bool(fold(reply)))
    letter = parse_choice(reply, options, compat)
    parsed = letter is not None
    if compat and not parsed:  # they draw a letter; here the same one each time
        letter = parse_choice(reply, options, compat, random.Random(f"{meta.get('where')} {reply}"))
    return _result(letter == _right_option(meta), parsed)


def _right_option(meta: Meta) -> str | None:
    """The letter of the right option, None for an open question."""
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


def _contains(compat: Compat, meta: Meta, reply: str) -> Scores:
    right = contains(reply, answers_of(meta), bool(meta.get("verbatim")), compat)
    return _result(right, bool(reply.strip()))


def _yes_no(compat: Compat, meta: Meta, reply: str) -> Scores:
    if compat == "lmms-eval":
        reply = reply.lower().strip()
        return _result(reply == _right_side(meta), reply in ("yes", "no"))
    said = parse_yes_no(reply)
    return _result(said == _right_side(meta), said is not None)


def _right_side(meta: Meta) -> YesNo:
    side = parse_yes_no(str(meta["reference"]))
    if side is None:
        raise DataError(
            f"{_where(meta)}: the answer '{meta['reference']}' is neither yes nor no; "
            "correct it or choose another --metric"
        )
    return "yes" if side == "yes" else "no"


def _yes_no_summary(compat: Compat, metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    found = pope(replies, [_right_side(meta) for meta in metas], compat)._asdict()
    return {name: found[name] for name in ("precision", "recall", "f1", "yes_ratio")}


def _caption(meta: Meta, reply: str) -> Scores:
    return _result(rouge_l(reply, answers_of(meta)), bool(reply.strip()))


def _caption_summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    references = [answers_of(meta) for meta in metas]
    scores = cider(replies, references)
    return {
        "cider": sum(scores) / len(scores),
        **{f"bleu-{n}": bleu(replies, references, n) for n in (1, 4)},
    }


def _transcript(meta: Meta, reply: str) -> Scores:
    wrong = character_error_rate([reply], [meta["reference"]])
    return _result(max(0.0, 1 - wrong), bool(reply.strip()))


def _transcript_summary(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    references = [meta["reference"] for meta in metas]
    return {
        "character_error_rate": character_error_rate(replies, references),
        "word_error_rate": word_error_rate(replies, references),
    }


def _click(meta: Meta, reply: str) -> Scores:
    point = parse_point(reply)
    right = point is not None and inside(_fractions(point, meta), _box(meta))
    return _result(right, point is not None)


def _overlap(meta: Meta, reply: str) -> Scores:
    """Correct from an IoU of 0.5 on (RefCOCO's accuracy)."""
    box = parse_box(reply)
    if box is None:
        return {**_result(0, False), "iou": 0.0}
    corners = (*_fractions(box[:2], meta), *_fractions(box[2:], meta))
    overlap = iou(Box(*corners), _box(meta))
    return {**_result(overlap >= 0.5, True), "iou": overlap}


def _box(meta: Meta) -> Box:
    if "box" not in meta:
        raise DataError(f"{_where(meta)}: no 'box' in its meta to compare with")
    return Box(*meta["box"])


def _where(meta: Meta) -> str:
    return meta.get("where", "a sample")


def _fractions(point: Sequence[float], meta: Meta) -> tuple[float, float]:
    """A point as fractions of the picture, from fractions, thousandths, or pixels where the task
    says so: meta "units" is 1 (the default), 1000 or "pixels" with "size" (width, height)."""
    units = meta.get("units", 1)
    width, height = meta["size"] if units == "pixels" else (units, units)
    return scale(Box(*point, *point), 1 / width, 1 / height)[:2]


def _plain(measure: str, score: Callable, summary: Callable | None = None, **more: Callable):
    metric = Metric(measure, score, summary, **more) if summary else Metric(measure, score, **more)
    return lambda compat: metric


def _compatible(measure: str, score: Callable, **more: Callable):
    return lambda compat: Metric(measure, partial(score, compat), **more)


METRICS: dict[str, Callable[[Compat], Metric]] = {
    "exact": _plain("accuracy", _exact),
    "vqa": _compatible("VQA accuracy", _vqa),
    "anls": _compatible("ANLS", _anls),
    "relaxed": _compatible("relaxed accuracy", _relaxed),
    "choice": _compatible("accuracy", _choice, check=_right_option),
    "contains": _compatible("accuracy", _contains),
    "yes-no": lambda compat: Metric(
        "accuracy", partial(_yes_no, compat), partial(_yes_no_summary, compat), _right_side
    ),
    "caption": _plain("ROUGE-L", _caption, _caption_summary),
    "transcript": _plain("1 - CER", _transcript, _transcript_summary),
    "click": _plain("click accuracy", _click, check=_box),
    "box": _plain("IoU ≥ 0.5", _overlap, check=_box),
}
