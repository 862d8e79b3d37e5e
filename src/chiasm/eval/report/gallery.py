"""The same questions under both routes, with a filter for what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path

import numpy as np

from chiasm.eval.metrics.vqa import fold
from chiasm.eval.report.images import data_uri
from chiasm.eval.report.source import MODELS, ROUTES, Run

MOST_WRONG, MOST_RIGHT = 30, 18


@dataclass
class Entry:
    """One question: what each route replied, with the right image and with a wrong one."""

    record: dict
    route: str
    replies: dict[str, dict] = field(default_factory=dict)
    blind: dict[str, dict] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        return any(reply.get("correct") == 0 for reply in self.replies.values())

    @property
    def failed(self) -> bool:
        return any(reply.get("correct") is None for reply in self.replies.values())

    @property
    def disagree(self) -> bool:
        return len({fold(str(reply.get("reply"))) for reply in self.replies.values()}) > 1

    @property
    def tags(self) -> str:
        return f"{'wrong ' * (self.wrong or self.failed)}{'disagree' * self.disagree}".strip()


def gallery(run: Run) -> str:
    entries = join(run)
    if not entries:
        return ""
    bad = [e for e in entries if e.tags]
    shown = choose(entries)
    addresses: dict[str, str | None] = {}
    cards = "".join(map(partial(_card, run, addresses), shown))
    missing = sum(address is None for address in addresses.values())
    if missing:
        run.notes.append(f"gallery: {missing} image{'s' * (missing > 1)} could not be read")
    counts = {
        "all": len(shown),
        "wrong": sum("wrong" in e.tags for e in shown),
        "disagree": sum(e.disagree for e in shown),
    }
    names = {"all": "All", "wrong": "Wrong", "disagree": "Routes disagree"}
    buttons = "".join(
        f'<button type="button" data-show="{tag}" aria-pressed="{str(tag == "all").lower()}">'
        f"{names[tag]} {count}</button>"
        for tag, count in counts.items()
        if tag == "all" or count
    )
    shown_bad = sum(bool(e.tags) for e in shown)
    return (
        '<section><h2>Question by question</h2><p class="lede">'
        f"{len(shown):,} of {len(entries):,} questions: {shown_bad:,} of the {len(bad):,} that a "
        "route got wrong or where the two differ, and the rest drawn at random. The share of "
        "errors here is therefore far above the true one.</p>"
        f'<div class="filters" role="group" aria-label="Which questions to show">{buttons}</div>'
        f'<div class="gallery">{cards}</div></section>'
    )


def join(run: Run) -> list[Entry]:
    """Predictions of the routes by the id of the question, in the order of the first file."""
    entries: dict[str, Entry] = {}
    for route in ROUTES:
        for record in run.predictions.get(route, []):
            key = str(record.get("id"))
            entries.setdefault(key, Entry(record, route)).replies[route] = record
        for record in run.blind.get(route, []):
            if str(record.get("id")) in entries:
                entries[str(record.get("id"))].blind[route] = record
    return list(entries.values())


def choose(entries: list[Entry]) -> list[Entry]:
    """Some with errors or differences, some right ones of different images; always the same."""
    random = np.random.default_rng(0)
    order = [entries[i] for i in random.permutation(len(entries))]
    bad = [e for e in order if e.tags][:MOST_WRONG]
    right: dict[str, Entry] = {}
    for entry in order:
        if not entry.tags and len(right) < MOST_RIGHT:
            right.setdefault(str(entry.record.get("image")), entry)
    kept = [*bad, *right.values()]
    return [kept[i] for i in random.permutation(len(kept))]


def swap_rate(run: Run, route: str) -> float | None:
    """The share of questions whose reply changes when the image is replaced by a wrong one."""
    seen = {str(r.get("id")): r.get("reply") for r in run.predictions.get(route, [])}
    pairs = [
        (seen[str(r.get("id"))], r.get("reply"))
        for r in run.blind.get(route, [])
        if str(r.get("id")) in seen
    ]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    return sum(fold(str(a)) != fold(str(b)) for a, b in pairs) / len(pairs) if pairs else None


def _card(run: Run, addresses: dict[str, str | None], entry: Entry) -> str:
    record = entry.record
    name = str(record.get("image") or "")
    if name and name not in addresses:
        addresses[name] = _address(run.folder, entry.route, name)
    address = addresses.get(name)
    gold = escape(str(record.get("reference")))
    image = (
        f'<img class="pixel" src="{address}" alt="Image of this question; answer: {gold}">'
        if address
        else '<div class="none">no image</div>'
    )
    replies = "".join(
        _reply(route, entry.replies[route]) for route in ROUTES if route in entry.replies
    )
    swapped = " · ".join(
        f"{MODELS[route]} {escape(str(entry.blind[route].get('reply') or '–'))}"
        for route in ROUTES
        if route in entry.blind
    )
    return (
        f'<article class="card ask" data-tags="{entry.tags}">{image}<div>'
        f"<h3>{escape(str(record.get('question')))}</h3><p>Right answer: <b>{gold}</b></p>{replies}"
        + (f'<div class="swapped">On a wrong image: {swapped}</div>' if swapped else "")
        + "</div></article>"
    )


def _reply(route: str, record: dict) -> str:
    if record.get("correct") is None:
        css, sign, text = "absent", "not asked", str(record.get("error") or "no reply")
    else:
        css, sign = ("right", "✓") if record["correct"] else ("wrong", "✗")
        text = str(record.get("reply")).strip() or "(empty)"
    label = {"right": "right", "wrong": "wrong"}.get(css, "failed")
    return (
        f'<div class="reply {css}"><span>{MODELS[route]}</span><strong>{escape(text)}</strong>'
        f'<strong aria-label="{label}">{sign}</strong></div>'
    )


def _address(folder: Path, route: str, name: str) -> str | None:
    """Images are named relative to the run's folder, the route's, or absolutely."""
    return data_uri(folder / name, 192) or data_uri(folder / route / name, 192)
