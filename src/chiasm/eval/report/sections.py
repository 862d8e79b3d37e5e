"""The sections of the page. Each takes the run and gives HTML, or nothing when it has no data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from chiasm.eval.report.charts import (
    Bar,
    Group,
    curve,
    grouped_bars,
    interval_strip,
    meter,
    percent,
)
from chiasm.eval.report.gallery import swap_rate
from chiasm.eval.report.images import data_uri, sheet
from chiasm.eval.report.source import MODELS, ROUTES, Run, number

HOW = {
    "mllm": "image → patches → projector → language model → text",
    "unified": "image ⇄ discrete codes; one transformer over codes and text",
}
SIDE = {"encoder": "mllm", "mllm": "mllm", "tokenizer": "unified", "unified": "unified"}
"""Which route a model belongs to: its colour, and whose bill it is on."""
SHOWN_DRAWINGS = 8

LOGO = (
    '<svg viewBox="0 0 34 26" aria-hidden="true"><g fill="none" stroke-width="4" '
    'stroke-linecap="round"><path d="M3 3C14 3 20 23 31 23" stroke="var(--mllm)"/>'
    '<path d="M3 23C14 23 20 3 31 3" stroke="var(--unified)"/></g></svg>'
)


def header(run: Run, title: str) -> str:
    facts = [
        ("wall time", duration(run.number("wall_seconds"))),
        ("peak memory", _with(run.number("peak_memory_gb"), "{:.1f} GB")),
        ("held-out questions", _with(_questions(run), "{:,.0f}")),
        ("zero-shot, encoder", share(run.number("encoder", "zero_shot_accuracy"))),
    ]
    items = "".join(f"<li><b>{value}</b> {name}</li>" for name, value in facts if value != "–")
    return (
        f'<header><div class="brand">{LOGO}<span>chiasm · report of a run</span></div>'
        f'<h1>{escape(title)}</h1><p class="lead">{verdict(run)}</p>'
        + (f'<ul class="facts">{items}</ul>' if items else "")
        + "</header>"
    )


def verdict(run: Run) -> str:
    """Two sentences: who answers better and whether that is sure; what else was seen."""
    scores = {r: run.number(r, "accuracy") for r in ROUTES}
    known = {r: s for r, s in scores.items() if s is not None}
    if not known:
        return "This run has no accuracies to compare. What it did leave is shown below."
    n = _questions(run)
    asked = f"{n:,.0f} held-out questions" if n else "the held-out questions"
    if len(known) == 1:
        route, score = next(iter(known.items()))
        first = f"The {_name(route)} answers {percent(score)} of {asked} about images correctly"
    else:
        first = (
            f"Of {asked} about images, the MLLM answers {percent(known['mllm'])} correctly "
            f"and the unified model {percent(known['unified'])}{_who_leads(run, known)}"
        )
    return f"{first}. {_second_sentence(run, known)}"


def _who_leads(run: Run, known: dict[str, float]) -> str:
    mllm, unified = _interval(run, "mllm"), _interval(run, "unified")
    if mllm is None or unified is None:
        return ""
    if mllm[0] <= unified[1] and unified[0] <= mllm[1]:
        return "; the 95 % intervals overlap, so neither is clearly ahead"
    leader = max(known, key=lambda route: known[route])
    return f"; the 95 % intervals do not overlap, so the {_name(leader)} is ahead"


def _second_sentence(run: Run, known: dict[str, float]) -> str:
    blind = {r: b for r in known if (b := run.number(r, "blind_accuracy")) is not None}
    said = []
    if blind:
        looks = all(known[r] - b > 0.1 for r, b in blind.items())
        falls = " and ".join(percent(b) for b in blind.values())
        subject = "both" if len(blind) == 2 else "it"
        said.append(
            f"{'on' if looks else 'even on'} wrong images {subject} "
            f"{'fall' if len(blind) == 2 else 'falls'} to {falls}, so the answers "
            f"{'are read from the image' if looks else 'owe little to the image'}"
        )
    drawn = run.number("unified", "t2i_joint_accuracy")
    if drawn is not None:
        said.append(
            "the unified model also draws, and an independent judge sees what was asked "
            f"for in {percent(drawn)} of its drawings"
        )
    text = "; ".join(said) or "how far the answers depend on the image was not measured"
    return text[0].upper() + text[1:] + "."


def cards(run: Run) -> str:
    present = [r for r in ROUTES if run.part(r)]
    if not present:
        return ""
    spans = [s for r in present if (s := _interval(run, r))]
    low = max(0.0, math.floor((min(s[0] for s in spans) - 0.02) * 20) / 20) if spans else 0.0
    articles = "".join(_route_card(run, route, low) for route in present)
    return f'<section><h2>Both routes at a glance</h2><div class="two">{articles}</div></section>'


def _route_card(run: Run, route: str, low: float) -> str:
    value, span = run.number(route, "accuracy"), _interval(run, route)
    strip = said = ""
    if value is not None:
        strip = interval_strip(Bar(route, MODELS[route], value, span), low, 1.0)
        said = "of questions answered correctly" + (
            f"; 95 % interval {percent(span[0])} to {percent(span[1])}" if span else ""
        )
    failures, n = run.number(route, "parse_failures"), run.number(route, "n")
    of = f" of {n:,.0f}" if n else ""
    rows = [
        ("Open questions", share(run.number(route, "open_accuracy"))),
        ("Yes / no questions", share(run.number(route, "yes_no_accuracy"))),
        ("Shown a wrong image (blind)", share(run.number(route, "blind_accuracy"))),
        ("Always the commonest answer", share(run.number("majority", "accuracy"))),
        ("Reply changes with the image", share(swap_rate(run, route))),
        ("Replies that are no answer", _with(failures, "{:,.0f}" + of)),
        ("Drawings that show what was asked", _draws(run, route)),
        ("Training time", duration(run.number(route, "train_seconds"))),
    ]
    body = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows if text != "–")
    return (
        f'<article class="card route {route}"><h3>{MODELS[route]}</h3>'
        f'<p class="how">{HOW[route]}</p><p class="big">{share(value)}</p>'
        f'<p class="quiet">{said}</p>{strip}<dl class="rows">{body}</dl></article>'
    )


def _draws(run: Run, route: str) -> str:
    return "reads only" if route == "mllm" else share(run.number(route, "t2i_joint_accuracy"))


def comparison(run: Run) -> str:
    kinds = (
        ("All questions", "accuracy", "accuracy"),
        ("Open questions", "open_accuracy", "open_accuracy"),
        ("Yes / no questions", "yes_no_accuracy", "yes_no_accuracy"),
        ("Shown a wrong image (blind)", "blind_accuracy", "accuracy"),
    )
    groups = []
    for label, key, baseline in kinds:
        bars = tuple(
            Bar(r, MODELS[r], v, _interval(run, r) if key == "accuracy" else None)
            for r in ROUTES
            if (v := run.number(r, key)) is not None
        )
        if bars:
            groups.append(Group(label, bars, run.number("majority", baseline)))
    if not groups:
        return ""
    used = {bar.css: bar.name for group in groups for bar in group.bars}
    legend = "".join(f'<span class="{css}"><i></i>{name}</span>' for css, name in used.items())
    if any(group.mark is not None for group in groups):
        legend += '<span><i class="dash"></i>always the commonest answer</span>'
    return (
        "<section><h2>Where the answers come from</h2>"
        '<p class="lede">Accuracy in per cent. A model that reads the image stands well above '
        "the dashed line, and falls when the image is swapped for another."
        f'</p><div class="card"><div class="legend">{legend}</div>'
        f"{grouped_bars(groups, 'commonest answer')}</div></section>"
    )


def drawings(run: Run) -> str:
    unified = run.part("unified")
    tiles = [
        (share(run.number("unified", "t2i_joint_accuracy")), "show the right colour and shape"),
        (share(run.number("unified", "t2i_color_accuracy")), "show the right colour"),
        (share(run.number("unified", "t2i_shape_accuracy")), "show the right shape"),
        (
            share(run.number("unified", "t2i_distinct")),
            "of the drawings of a caption are different images",
        ),
        (share(run.number("judge", "accuracy")), "of real images the judge itself gets right"),
    ]
    agreement = unified.get("t2i_per_caption")
    figures = "".join(
        _drawn(run, caption, number((agreement or {}).get(caption))) for caption in run.drawings
    )
    if not figures and all(value == "–" for value, _ in tiles[:4]):
        return ""
    total = sum(len(paths) for paths in run.drawings.values())
    shown = sum(min(SHOWN_DRAWINGS, len(paths)) for paths in run.drawings.values())
    count = f" {shown:,} of {total:,} drawings, the first of each caption." if total else ""
    best_of, first = run.number("unified", "t2i_best_of"), unified.get("t2i_first_joint_accuracy")
    chosen = ""
    if best_of is not None and best_of > 1:
        without = f"; without that choice {share(number(first))} are right" if first else ""
        tries = number(unified.get("t2i_tries"))
        average = f" ({tries:.1f} on average)" if tries is not None else ""
        chosen = (
            f" Each was drawn anew, up to {best_of:.0f} times{average}, until the model itself "
            f"would have said the caption of it{without}."
        )
    return (
        "<section><h2>What the unified model draws</h2>"
        '<p class="lede">Each caption was given to the model several times; the bar is the share '
        "of its drawings in which a separate classifier, trained on real images only, sees what "
        f"was asked.{chosen}{count}</p>{_tiles(tiles)}"
        f'<div class="drawings">{figures}</div></section>'
    )


def _drawn(run: Run, caption: str, agreement: float | None) -> str:
    paths = run.drawings[caption][:SHOWN_DRAWINGS]
    address = sheet(paths, columns=4)
    if address is None:
        run.notes.append(f"drawings of '{caption}' could not be read")
        return ""
    name = escape(caption)
    bar = rounded = ""
    if agreement is not None:
        rounded = f"{100 * agreement:.0f}\u202f%"
        bar = meter(agreement, "unified", f"{caption}: {percent(agreement)} agree")
    return (
        f'<figure><img class="pixel" src="{address}" alt="{len(paths)} drawings of: {name}">'
        f"<figcaption><span>{name}</span><b>{rounded}</b></figcaption>{bar}"
        "</figure>"
    )


def parts(run: Run) -> str:
    usage = run.number("tokenizer", "code_usage")
    quality = run.number("tokenizer", "psnr")
    tiles = [
        (
            share(run.number("encoder", "zero_shot_accuracy")),
            "zero-shot accuracy of the visual encoder",
        ),
        (_with(quality, "{:.1f} dB"), "PSNR of images through the discrete bottleneck"),
        (share(usage), "of the codes in use"),
        (_with(run.number("tokenizer", "codebook_perplexity"), "{:,.0f}"), "codebook perplexity"),
    ]
    address = data_uri(run.reconstructions, 1600) if run.reconstructions else None
    if run.reconstructions and address is None:
        run.notes.append("tokenizer/reconstructions.png could not be read")
    figure = ""
    if address:
        figure = (
            '<figure class="card"><img class="pixel" style="width:100%" '
            f'src="{address}" alt="Images above, their reconstructions from codes below">'
            '<figcaption class="quiet below">Above: real images. Below: the same after encoding '
            "to discrete codes and back; the unified model sees and draws no more than this."
            "</figcaption></figure>"
        )
    if not figure and all(value == "–" for value, _ in tiles):
        return ""
    return f"<section><h2>The parts underneath</h2>{_tiles(tiles)}{figure}</section>"


def curves(run: Run) -> str:
    figures = []
    for model, lines in run.metrics.items():
        stages: dict[str, list[tuple[float, float]]] = {}
        for line in lines:
            step, loss = number(line.get("step")), number(line.get("loss"))
            if step is not None and loss is not None:
                stages.setdefault(str(line.get("stage", "train")), []).append((step, loss))
        figures += [
            _curve(model, stage, points) for stage, points in stages.items() if len(points) > 1
        ]
    if not figures:
        return ""
    return (
        '<section><h2>How the training went</h2><p class="lede">Training loss by stage: smoothed '
        "over the faint measured values. Losses of different models are not comparable.</p>"
        f'<div class="curves">{"".join(figures)}</div></section>'
    )


def _curve(model: str, stage: str, points: Sequence[tuple[float, float]]) -> str:
    tail = [loss for _, loss in points[-max(1, len(points) // 10) :]]
    last = sum(tail) / len(tail)
    css, name = SIDE[model], MODELS[model]
    title = name if stage in (model, "train") else f"{name} · {stage}"
    said = f"Training loss of {title}, from {points[0][1]:.3g} to {last:.3g}"
    return (
        f'<figure class="card {css}"><figcaption><b>{escape(title)}</b><span class="quiet">ends '
        f"at {last:.3g}</span></figcaption>{curve(points, css, said)}</figure>"
    )


def ledger(run: Run) -> str:
    rows = []
    for route in ROUTES:
        bill = {m: stages for m, stages in run.ledgers.items() if SIDE[m] == route}
        for model, stages in bill.items():
            alone = stages[0] if len(stages) == 1 else None
            rows.append(_ledger_row(MODELS[model], stages, "model", alone))
            if alone is None:
                rows += [_ledger_row(str(s.get("name", "?")), [s], "stage", s) for s in stages]
        if route in bill:
            whole = [stage for stages in bill.values() for stage in stages]
            rows.append(
                _ledger_row(
                    f"{MODELS[route]} route",
                    whole,
                    f"total {route}",
                    accuracy=run.number(route, "accuracy"),
                )
            )
    if not rows:
        return ""
    heads = ("", "Steps", "Images", "Tokens", "PFLOP", "Time", "Trained", "Frozen", "Accuracy")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<section><h2>What it cost</h2><p class="lede">Trained and frozen are parameters. A PFLOP '
        "is 10<sup>15</sup> floating-point operations, counted from shapes, forward and backward. "
        "What borrowed weights cost their makers is not in it.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Cost by stage">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div></section>"
    )


def _ledger_row(
    name: str,
    stages: Sequence[dict],
    css: str,
    weights: dict | None = None,
    accuracy: float | None = None,
) -> str:
    def total(key: str) -> float:
        return sum(number(stage.get(key)) or 0.0 for stage in stages)

    cells = [
        f"{total('steps'):,.0f}",
        amount(total("images")),
        amount(total("tokens")),
        f"{total('flops') / 1e15:,.3g}",
        duration(total("seconds")),
        amount(number(weights.get("trained_parameters"))) if weights else "",
        amount(number(weights.get("frozen_parameters"))) if weights else "",
        share(accuracy) if accuracy is not None else "",
    ]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{css}"><th scope="row">{escape(name)}</th>{body}</tr>'


def method(run: Run) -> str:
    judge = run.number("judge", "accuracy")
    wrong = f" (right on {percent(judge)} of held-out real images)" if judge is not None else ""
    captions = len(run.part("unified").get("t2i_per_caption") or {})
    chance = f" Chance is 1 in {captions}." if captions > 1 else ""
    answered = any(run.number(route, "accuracy") is not None for route in ROUTES)
    points = [
        (
            answered,
            "A reply is read as the one possible answer that it is, or contains as a whole "
            "word, after folding case, punctuation and articles; it is right when that is the "
            "reference. With none or several it is a parse failure: counted, wrong, never guessed.",
        ),
        (
            any(_interval(run, route) for route in ROUTES),
            "Intervals are Wilson's at 95 % and take questions to be independent; those about one "
            "image are not quite, so the true uncertainty is somewhat larger.",
        ),
        (
            any(run.number(route, "blind_accuracy") is not None for route in ROUTES),
            "Blind: every image is replaced by another one of the test set and the questions are "
            "asked again. What remains right was not read from the image.",
        ),
        (
            bool(run.part("majority")),
            "The commonest answer is taken from the test references themselves, which makes it as "
            "strong as a constant answer can be; within open and yes / no questions it is the "
            "commonest of those.",
        ),
        (
            bool(run.drawings) or judge is not None,
            "Drawings are judged by a small classifier of its own, trained on real images "
            f"only{wrong}; it shares no weights or features with what it judges.{chance}",
        ),
        (
            bool(run.part("tokenizer")),
            "PSNR compares images with their reconstructions; code usage is the share of the "
            "codebook that they use.",
        ),
    ]
    items = "".join(f"<li>{text}</li>" for applies, text in points if applies)
    if not items:
        return ""
    return f'<section><h2>How it was measured</h2><ul class="method">{items}</ul></section>'


def details(run: Run) -> str:
    parts = (("Versions", "versions"), ("Settings", "settings"), ("Data", "data"))
    return details_of([(title, run.summary.get(key)) for title, key in parts])


def details_of(parts: Iterable[tuple[str, object]]) -> str:
    """Titles and nested values as tables that open; versions are open."""
    blocks = []
    for title, value in parts:
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'
            for name, text in _flat(value)
        )
        if rows:
            blocks.append(
                f"<details{' open' if title == 'Versions' else ''}><summary>{title}</summary>"
                f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table>'
                "</div></details>"
            )
    return f"<section><h2>Exactly this run</h2>{''.join(blocks)}</section>" if blocks else ""


def left_out(run: Run) -> str:
    if not run.notes:
        return ""
    items = "; ".join(escape(note) for note in run.notes)
    return f"<footer>Left out of this page: {items}.</footer>"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(value: float | None) -> str:
    """A count in at most four characters and a unit."""
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}\u202f{unit}"
    return f"{value:.0f}"


def share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _with(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{value}</b>{text}</li>" for value, text in tiles if value != "–")
    return f'<ul class="tiles">{items}</ul>' if items else ""


def _name(route: str) -> str:
    return {"mllm": "MLLM", "unified": "unified model"}[route]


def _questions(run: Run) -> float | None:
    """How many questions, when all routes that say so were asked as many."""
    counts = {n for r in ROUTES if (n := run.number(r, "n")) is not None}
    return counts.pop() if len(counts) == 1 else None


def _interval(run: Run, route: str) -> tuple[float, float] | None:
    ends = run.part(route).get("accuracy_interval")
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return None if low is None or high is None else (low, high)


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and text."""
    if isinstance(value, dict):
        return [
            row
            for key, child in value.items()
            for row in _flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, str(value))] if value is not None and prefix else []
