"""Metrics as lmms-eval computes them, defects included, for `--match-harness lmms-eval`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from chiasm.core.errors import ConfigError, DataError
from chiasm.eval.metrics import lmms_eval
from chiasm.eval.metrics.lmms_eval import VERSION, strip_reasoning
from chiasm.eval.scoring import (
    METRICS,
    Meta,
    Metric,
    Scores,
    answers_of,
    pope_scores,
    result,
    right_option,
    right_side,
)


def harness_metric(name: str, benchmark: str = "") -> Metric:
    """lmms-eval's own scoring of a benchmark, or of a metric's usual benchmark for other data.
    Raises ConfigError where it has none."""
    found = BENCHMARKS.get(benchmark) or USUAL.get(name)
    if benchmark in NOT_THEIRS:
        found = None
    if found is None:
        raise ConfigError(
            f"lmms-eval {VERSION} has no scoring of {benchmark or name} that could be repeated "
            f"(it has those of {', '.join(USUAL)}); leave out --match-harness"
        )
    return found


def _metric(name: str, score: Callable, **more: Callable) -> Metric:
    """One of METRICS with their score in place of ours, and their version in its name."""
    return Metric(f"{METRICS[name].measure} (lmms-eval {VERSION})", score, **more)


def _by_answers(scored: Callable[[str, Sequence[str]], float], meta: Meta, reply: str) -> Scores:
    reply = strip_reasoning(reply)
    return result(scored(reply, answers_of(meta)), bool(reply))


def _by_target(scored: Callable[[str, str], bool], meta: Meta, reply: str) -> Scores:
    """Right where any answer is; their benchmarks of this kind have one."""
    return _by_answers(lambda said, answers: any(scored(said, a) for a in answers), meta, reply)


def _several(meta: Meta) -> None:
    if len(answers_of(meta)) < 2:
        raise DataError(
            f"{meta.get('where', 'a sample')}: one answer, where lmms-eval leaves each annotator "
            "out in turn and gives 0 to all replies; give several answers or leave out "
            "--match-harness"
        )


def _contains(meta: Meta, reply: str) -> Scores:
    scored = partial(lmms_eval.contains, verbatim=bool(meta.get("verbatim")))
    return _by_answers(scored, meta, reply)


def _mmmu(meta: Meta, reply: str, as_published: bool = False) -> Scores:
    reply, options = strip_reasoning(reply), meta.get("options")
    if not options:
        answers = answers_of(meta)
        spelled = str(answers) if as_published and len(answers) > 1 else answers
        return result(lmms_eval.mmmu_open(reply, spelled), bool(reply))
    # They draw a letter where they find none; here the same one each time.
    guess = random.Random(f"{meta.get('where')} {reply}")
    letter = lmms_eval.mmmu_choice(reply, options, guess)
    parsed = lmms_eval.mmmu_choice(reply, options) is not None
    return result(letter == right_option(meta), parsed)


def _ai2d(meta: Meta, reply: str) -> Scores:
    # Filters run before thinking is taken out.
    said, right = strip_reasoning(lmms_eval.ai2d(reply)), right_option(meta)
    return result(right is not None and lmms_eval.exact(said, right), len(said) == 1)


def _extracted(meta: Meta, reply: str) -> Scores:
    letter = lmms_eval.extracted(strip_reasoning(reply))
    return result(letter == right_option(meta), bool(letter))


def _mmbench(meta: Meta, reply: str) -> Scores:
    letter = lmms_eval.mmbench(strip_reasoning(reply), meta["options"])
    return result(letter == right_option(meta), bool(letter))


def _yes_no(meta: Meta, reply: str) -> Scores:
    said = lmms_eval.yes_no(strip_reasoning(reply))
    return result(said == right_side(meta), said is not None)


def _pope(metas: Sequence[Meta], replies: Sequence[str]) -> Scores:
    said = [strip_reasoning(reply) for reply in replies]
    return pope_scores(lmms_eval.pope(said, [right_side(meta) for meta in metas]))


USUAL: dict[str, Metric] = {
    "exact": _metric("exact", partial(_by_target, lmms_eval.exact)),
    "vqa": _metric("vqa", partial(_by_answers, lmms_eval.vqa), check=_several),
    "anls": _metric("anls", partial(_by_answers, lmms_eval.anls)),
    "relaxed": _metric("relaxed", partial(_by_target, lmms_eval.relaxed)),
    "choice": _metric("choice", _mmmu, check=right_option),
    "contains": _metric("contains", _contains),
    "yes-no": _metric("yes-no", _yes_no, summary=_pope, check=right_side),
    # The same formulas; tests compare ours with the package that they call (pycocoevalcap).
    "caption": METRICS["caption"],
}
"""Of metrics, as a benchmark of that kind is scored (GQA, VQAv2, DocVQA, ChartQA, MMMU, OCRBench,
POPE)."""

BENCHMARKS: dict[str, Metric] = {
    "textvqa": _metric("vqa", partial(_by_answers, lmms_eval.textvqa), check=_several),
    "mmmu": _metric("choice", partial(_mmmu, as_published=True), check=right_option),
    "ai2d": _metric("choice", _ai2d, check=right_option),
    "mmstar": _metric("choice", _extracted, check=right_option),
    "video-mme": _metric("choice", _extracted, check=right_option),
    "mmbench": _metric("choice", _mmbench, check=right_option),
}
"""Of benchmarks that have a scoring of their own; the others have their metric's."""

NOT_THEIRS = frozenset({"imagenet", "screenspot", "geneval"})
"""Benchmarks that it has not, or asks in another way (for a box, not for a point)."""
