"""The page of `chiasm isoflop`: quality against compute, which route wins where, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from chiasm.eval.duel import TOLERANCE, ModelAtBudget, Outcome, PairwiseTest, conclusions, in_short
from chiasm.eval.report.charts import percent
from chiasm.eval.report.compared import css, header, p_value, points, table
from chiasm.eval.report.page import write_page
from chiasm.eval.report.plane import Point, Series, legend, plane
from chiasm.eval.report.sections import amount, details_of, duration

TITLE = "Two routes, the same compute"


def render_duel(
    outcome: Outcome,
    titles: Mapping[str, str],
    measure: str,
    record: Mapping,
    out: Path,
) -> Path:
    """Write the page. record: "data", "questions", "versions" and "settings" of the duel."""
    said = conclusions(outcome)
    trials = [t for s in outcome.stands for t in s.trials]
    facts = [
        (f"{len(outcome.arms)}", "arms"),
        (f"{len(outcome.budgets)}", "budgets" if len(outcome.budgets) > 1 else "budget"),
        (f"{len({t.seed for t in trials})}", "seeds"),
        (f"{record['questions']:,}", "questions"),
        (duration(sum(t.seconds for t in trials)), "of training"),
    ]
    trained = f"Trained on {record['data']} within the same training FLOPs, parts included."
    body = [
        header(TITLE, "duel", f"{trained} {in_short(outcome)}", facts),
        _curves(outcome, titles, measure),
        _conclusions(said),
        _stands(outcome, titles, measure),
        _bouts(outcome),
        _method(outcome),
        details_of(
            (
                ("Steps of every stage", _steps(outcome)),
                ("Versions", record.get("versions")),
                ("Settings", record.get("settings")),
            )
        ),
    ]
    return write_page(out, f"{TITLE}: {record['data']}", body)


def _curves(outcome: Outcome, titles: Mapping[str, str], measure: str) -> str:
    series = [
        Series(
            css(number),
            titles.get(arm, arm),
            tuple(_point(s) for s in outcome.stands if s.arm == arm),
        )
        for number, arm in enumerate(outcome.arms)
    ]
    return (
        '<section><h2>Quality against compute</h2><p class="lede">Of held-out questions: '
        f"{escape(measure)}. Large points are means over seeds with 95 % intervals, small ones "
        "single runs; where arms share a budget they are drawn side by side.</p>"
        f'<div class="card">{legend(series)}{plane(series, "Quality against training compute")}'
        "</div></section>"
    )


def _point(stand: ModelAtBudget) -> Point:
    runs = tuple((stand.budget, trial.mean) for trial in stand.trials)
    return Point(stand.budget, stand.mean, stand.interval, runs)


def _conclusions(said: list[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<section><h2>Who wins where</h2><ul class="said">{items}</ul></section>'


def _stands(outcome: Outcome, titles: Mapping[str, str], measure: str) -> str:
    rows = []
    for number, arm in enumerate(outcome.arms):
        for stand in (s for s in outcome.stands if s.arm == arm):
            trials, (low, high) = stand.trials, stand.interval
            spent = sum(t.flops for t in trials) / len(trials)
            cells = (
                f"{stand.budget:.3g}",
                percent(stand.mean),
                f"{percent(low)} to {percent(high)}",
                ", ".join(percent(t.mean) for t in trials),
                f"{spent:.4g} ({spent / stand.budget - 1:+.1%})",
                duration(sum(t.seconds for t in trials) / len(trials)),
                f"{amount(max(t.peak_memory for t in trials))}B",
            )
            body = "".join(f"<td>{cell}</td>" for cell in cells)
            name = escape(titles.get(arm, arm))
            rows.append(f'<tr class="total {css(number)}"><th scope="row">{name}</th>{body}</tr>')
    heads = ("", "Budget", measure, "95 %", "Seeds", "FLOPs spent", "Time a run", "Peak memory")
    return f"<section><h2>Every arm at every budget</h2>{table(heads, ''.join(rows))}</section>"


def _bouts(outcome: Outcome) -> str:
    rows = "".join(map(_bout, outcome.bouts))
    heads = ("", "Budget", "Difference", "95 %", "p", "p, corrected", "Would be seen", "Better")
    return (
        '<section><h2>Every pair at every budget</h2><p class="lede">The last but one column is '
        "what a difference must exceed to be seen with so many seeds and questions.</p>"
        f"{table(heads, rows)}</section>"
    )


def _bout(bout: PairwiseTest) -> str:
    low, high = (f"{100 * end:+.1f}".replace("-", "\u2212") for end in bout.interval)
    cells = (
        f"{bout.budget:.3g}",
        points(bout.difference, True),
        f"{low} to {high}",
        p_value(bout.p),
        p_value(bout.adjusted),
        points(bout.detectable),
    )
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    better = (
        f'<td class="yes">{escape(bout.winner)}</td>'
        if bout.winner
        else '<td class="no">cannot tell</td>'
    )
    name = escape(f"{bout.second} \u2212 {bout.first}")
    return f'<tr><th scope="row">{name}</th>{body}{better}</tr>'


def _steps(outcome: Outcome) -> dict:
    return {
        f"{s.arm} at {s.budget:.3g}": ", ".join(f"{k} {n}" for k, n in s.trials[0].steps.items())
        for s in outcome.stands
    }


def _method(outcome: Outcome) -> str:
    said = [
        "A budget is all FLOPs of training, forward and backward, counted from shapes by the "
        "ledger: those of the visual encoder or the image tokenizer, and for the unified route the "
        "one pass that turns each image into codes. What pretrained weights cost their makers is "
        "not in it, which is why there is an arm whose language model starts from random weights.",
        "The steps of all stages of a recipe are scaled by one factor until their FLOPs meet the "
        f"budget; a run further than {TOLERANCE:.0%} from it is named above. The recipes were made "
        "for their full length; what suits a tenth of it may be another recipe.",
        "Intervals are for other seeds and other questions: the variance over seeds plus that over "
        "images, with Student's t. Of few seeds they are wide, and honestly so.",
        "A winner needs p below 0.05 after Holm's correction over all pairs and budgets; otherwise "
        "the page says that it cannot tell.",
    ]
    items = "".join(f"<li>{text}</li>" for text in said)
    return f'<section><h2>How it was measured</h2><ul class="method">{items}</ul></section>'
