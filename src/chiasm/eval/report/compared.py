"""The page of `chiasm compare`: who is better, where, at what cost, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from chiasm.eval.compare import Bill, Category, Comparison, Pair, Score
from chiasm.eval.report.charts import Bar, Group, grouped_bars, interval_strip, percent
from chiasm.eval.report.images import data_uri
from chiasm.eval.report.page import write_page
from chiasm.eval.report.plane import Point, Series, plane
from chiasm.eval.report.sections import LOGO, amount, duration

MOST_CARDS, MOST_CATEGORIES = 48, 24
TITLE = "Models compared on the same questions"


def render_comparison(found: Comparison, task: str, measure: str, out: Path) -> Path:
    """Write the page. Nothing on it asks the network for anything."""
    body = [
        header(TITLE, "comparison", verdict(found, task), _facts(found, task)),
        _cards(found, measure),
        _pairs(found),
        _by(found, found.categories, "Kind by kind", f"By kind of question: {measure}", "kinds"),
        _by(found, found.turns, "Turn by turn", f"By turn of the conversation: {measure}", "turns"),
        _cost(found),
        _gallery(found),
        _method(found),
    ]
    return write_page(out, f"{TITLE}: {task}", body)


def header(title: str, kind: str, lead: str, facts: Sequence[tuple[str, str]]) -> str:
    """facts: (value, what it is of)."""
    items = "".join(f"<li><b>{escape(value)}</b> {escape(name)}</li>" for value, name in facts)
    return (
        f'<header><div class="brand">{LOGO}<span>chiasm · {kind}</span></div>'
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<ul class="facts">{items}</ul></header>'
    )


def css(number: int) -> str:
    """The colour of the n-th model."""
    return f"m{number % 6}"


def verdict(found: Comparison, task: str) -> str:
    """One sentence a pair that is decided, one for all that are not."""
    sure = [pair for pair in found.pairs if pair.winner]
    open_ = [pair for pair in found.pairs if not pair.winner]
    said = []
    for pair in sure:
        loser = pair.first if pair.winner == pair.second else pair.second
        said.append(
            f"{pair.winner} is better than {loser} by {points(abs(pair.difference))} "
            f"(95 % interval {span(pair)}, corrected p {p_value(pair.adjusted)})"
        )
    if open_:
        names = ", ".join(f"{p.first} and {p.second} ({points(p.difference, True)})" for p in open_)
        said.append(f"these questions cannot tell {names} apart")
    text = "; ".join(said)
    n = len(found.questions)
    return f"On {n:,} questions of {task} that all of them answered: {text}."


def points(share: float, signed: bool = False) -> str:
    """A difference of fractions in percentage points."""
    return f"{100 * share:{'+' if signed else ''}.1f} points".replace("-", "\u2212")


def span(pair: Pair) -> str:
    low, high = sorted(pair.interval)
    if pair.winner == pair.first:
        low, high = -high, -low
    return f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "\u2212")


def p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _facts(found: Comparison, task: str) -> list[tuple[str, str]]:
    facts = [
        (f"{len(found.contenders)}", "models"),
        (f"{len(found.questions):,}", f"questions of {task}"),
        (f"{len(found.disagreements):,}", "on which they disagree"),
    ]
    if found.left_out:
        facts.append((f"{found.left_out:,}", "left out: not answered by all"))
    return facts


def _cards(found: Comparison, measure: str) -> str:
    low = max(0.0, np.floor((min(s.interval[0] for s in found.scores) - 0.02) * 20) / 20)
    articles = []
    for number, (score, one) in enumerate(zip(found.scores, found.contenders, strict=True)):
        strip = interval_strip(Bar(css(number), score.name, score.mean, score.interval), low, 1.0)
        replies = [one.records[q] for q in found.questions]
        rows = [
            ("Replies that are no answer", f"{sum(r.get('parsed') == 0 for r in replies):,}"),
            (
                "Cut off at the longest reply",
                f"{sum(r.get('finish') == 'length' for r in replies):,}",
            ),
            *_bill_rows(one.bill),
        ]
        body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
        a, b = score.interval
        articles.append(
            f'<article class="card route {css(number)}"><h3>{escape(score.name)}</h3>'
            f'<p class="big">{percent(score.mean)}</p><p class="quiet">{escape(measure)}; 95 % '
            f"interval {percent(a)} to {percent(b)}</p>{strip}"
            f'<dl class="rows">{body}</dl></article>'
        )
    return f'<section><h2>At a glance</h2><div class="two">{"".join(articles)}</div></section>'


def _bill_rows(bill: Bill) -> list[tuple[str, str]]:
    rows = [
        ("Training FLOPs, parts included", bill.flops and f"{bill.flops:.3g}"),
        ("Training time", bill.seconds and duration(bill.seconds)),
        ("Peak memory", bill.peak_memory and f"{amount(bill.peak_memory)}B"),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _pairs(found: Comparison) -> str:
    rows = "".join(_pair_row("", pair) for pair in found.pairs)
    return (
        '<section><h2>Is the difference real?</h2><p class="lede">Each pair on the same questions: '
        "what one alone gets right against what the other alone gets right. The interval is drawn "
        "over whole images; p is corrected for the number of tests (Holm).</p>"
        f"{table(('', *HEADS), rows)}</section>"
    )


HEADS = ("Difference", "95 %", "Only first", "Only second", "Test", "p", "p, corrected", "Better")


def _pair_row(label: str, pair: Pair) -> str:
    low, high = (f"{100 * end:+.1f}".replace("-", "\u2212") for end in pair.interval)
    name = label or f"{pair.second} \u2212 {pair.first}"
    better = (
        f'<td class="yes">{escape(pair.winner)}</td>'
        if pair.winner
        else '<td class="no">cannot tell</td>'
    )
    cells = (
        points(pair.difference, True),
        f"{low} to {high}",
        f"{pair.only_first:,}",
        f"{pair.only_second:,}",
        pair.test,
        p_value(pair.p),
        p_value(pair.adjusted),
    )
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{body}{better}</tr>'


def table(heads: Sequence[str], rows: str) -> str:
    """Rows of HTML under headings, in a box that scrolls sideways on a phone."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _by(found: Comparison, parts: Sequence[Category], title: str, lead: str, plural: str) -> str:
    """The questions apart by kind or by turn; "" where there is one part only."""
    if not parts:
        return ""
    shown = parts[:MOST_CATEGORIES]
    colours = {c.name: css(i) for i, c in enumerate(found.contenders)}
    groups = [
        Group(f"{kind.name} (n {kind.scores[0].n:,})", tuple(_bar(colours, s) for s in kind.scores))
        for kind in shown
    ]
    legend = "".join(
        f'<span class="{hue}"><i></i>{escape(name)}</span>' for name, hue in colours.items()
    )
    rows = "".join(
        _pair_row(f"{kind.name}: {pair.second} \u2212 {pair.first}", pair)
        for kind in shown
        for pair in kind.pairs
    )
    more = len(parts) - len(shown)
    note = f" The {more} last {plural} are not shown." if more else ""
    return (
        f'<section><h2>{title}</h2><p class="lede">'
        f"{escape(lead)} in per cent, with 95 % intervals.{note}</p>"
        f'<div class="card"><div class="legend">{legend}</div>{grouped_bars(groups)}</div>'
        f"<details><summary>The tests behind it</summary>{table(('', *HEADS), rows)}</details>"
        "</section>"
    )


def _bar(colours: dict[str, str], score: Score) -> Bar:
    return Bar(colours[score.name], score.name, score.mean, score.interval)


def _cost(found: Comparison) -> str:
    series, rows = [], []
    for i, (one, score) in enumerate(zip(found.contenders, found.scores, strict=True)):
        if one.bill.flops:
            point = Point(one.bill.flops, score.mean, score.interval)
            series.append(Series(css(i), one.name, (point,)))
        bill = one.bill
        cells = (
            percent(score.mean),
            f"{bill.flops:.3g}" if bill.flops else "–",
            duration(bill.seconds),
            f"{amount(bill.peak_memory)}B" if bill.peak_memory else "–",
        )
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(
            f'<tr class="total {css(i)}"><th scope="row">{escape(one.name)}</th>{body}</tr>'
        )
    if not any(c.bill.flops or c.bill.seconds for c in found.contenders):
        return ""
    chart = plane(series, "Quality against training compute") if len(series) > 1 else ""
    heads = ("", "Score", "FLOPs", "Time", "Peak memory")
    return (
        '<section><h2>What it cost</h2><p class="lede">Of training, with the encoder or the image '
        "tokenizer, from the ledgers. What borrowed weights cost their makers is not in it.</p>"
        + (f'<div class="card">{chart}</div><br>' if chart else "")
        + f"{table(heads, ''.join(rows))}</section>"
    )


def _gallery(found: Comparison) -> str:
    wanted = found.disagreements
    if not wanted:
        return ""
    order = np.random.default_rng(0).permutation(len(wanted))[:MOST_CARDS]
    shown = [wanted[i] for i in sorted(order)]
    tags = {f"only-{i}": c.name for i, c in enumerate(found.contenders)}
    counts = {tag: sum(_tag(found, q) == tag for q in shown) for tag in tags}
    buttons = f'<button type="button" data-show="all" aria-pressed="true">All {len(shown)}</button>'
    buttons += "".join(
        f'<button type="button" data-show="{tag}" aria-pressed="false">Only {escape(name)} right '
        f"{counts[tag]}</button>"
        for tag, name in tags.items()
        if counts[tag]
    )
    return (
        f'<section><h2>Where they disagree</h2><p class="lede">{len(shown):,} of the '
        f"{len(wanted):,} questions that some get right and others wrong, drawn at random.</p>"
        f'<div class="filters" role="group" aria-label="Which questions to show">{buttons}</div>'
        f'<div class="gallery">{"".join(_card(found, q) for q in shown)}</div></section>'
    )


def _tag(found: Comparison, question: str) -> str:
    """ "only-i" where contender i alone is right."""
    right = [i for i, c in enumerate(found.contenders) if c.records[question]["correct"] >= 0.5]
    return f"only-{right[0]}" if len(right) == 1 else ""


def _card(found: Comparison, question: str) -> str:
    record = found.contenders[0].records[question]
    gold = escape(str(record.get("reference")))
    address = data_uri(Path(record["image"]), 192) if record.get("image") else None
    image = (
        f'<img class="pixel" src="{address}" alt="Image of this question; answer: {gold}">'
        if address
        else '<div class="none">no image</div>'
    )
    replies = "".join(_reply(c.name, c.records[question]) for c in found.contenders)
    return (
        f'<article class="card ask" data-tags="{_tag(found, question)}">{image}<div>'
        f"<h3>{escape(str(record.get('question')))}</h3><p>Right answer: <b>{gold}</b></p>{replies}"
        "</div></article>"
    )


def _reply(name: str, record) -> str:
    right = record["correct"] >= 0.5
    text = escape(str(record.get("reply")).strip() or "(empty)")
    return (
        f'<div class="reply {"right" if right else "wrong"}"><span>{escape(name)}</span>'
        f'<strong>{text}</strong><strong aria-label="{"right" if right else "wrong"}">'
        f"{'✓' if right else '✗'}</strong></div>"
    )


def _method(found: Comparison) -> str:
    points_ = [
        "Only questions that every model answered are compared; a request that failed is no answer "
        f"and is left out for all ({found.left_out:,} here).",
        "McNemar's exact test where an answer is right or wrong, a paired bootstrap where scores "
        "lie between. McNemar's takes questions to be independent, which those about one image "
        "are not; therefore a model is called better only if the interval drawn over whole "
        "images leaves out zero as well.",
        "p is corrected by Holm's procedure, over the pairs and, apart from those, over all kinds "
        f"and pairs. Better means a corrected p below {0.05:g}.",
    ]
    items = "".join(f"<li>{text}</li>" for text in points_)
    return f'<section><h2>How it was measured</h2><ul class="method">{items}</ul></section>'
