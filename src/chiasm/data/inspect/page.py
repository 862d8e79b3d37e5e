"""An inspection as one HTML file that needs no other, and as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Text
from chiasm.data.inspect.measure import ImageStats, Inspection, Seen, usual

SHOWN, LISTED, GROUPS = 120, 500, 40  # samples in the gallery; lines in a list; doubles
EDGE = 220  # pixels of a thumbnail
BARS = 24


def write_page(found: Inspection, out: Path) -> None:
    """Write `out` (HTML) and, beside it, the whole report as .json."""
    body = "\n".join([_head(found), _unusable(found), _unused(found), _odd(found), _alike(found),
                      _sizes(found),
                      _gallery(found)])  # fmt: skip
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    out.parent.mkdir(parents=True, exist_ok=True)
    page = template.substitute(title=escape(f"Data: {found.data}"), body=body)
    out.write_text(page, encoding="utf-8", errors="replace")
    out.with_suffix(".json").write_text(json.dumps(summary(found), indent=1), encoding="utf-8")


def summary(found: Inspection) -> dict:
    """Everything that was found, as JSON."""
    seen = found.seen
    return {
        "data": found.data,
        "format": found.title,
        "samples": Counter(s.split for s in seen),
        "turns": sum(len(s.sample.turns) for s in seen),
        "images": sum(len(s.images) for s in seen),
        "clips": sum(len(s.sample.videos) for s in seen),
        "tokens": {
            "counted": found.exact_tokens,
            "total": sum(s.tokens for s in seen),
            **_spread([s.tokens for s in seen]),
        },
        "width": _spread([p.width for s in seen for p in s.images]),
        "height": _spread([p.height for s in seen for p in s.images]),
        "image formats": Counter(p.format for s in seen for p in s.images),
        "text": asdict(found.resolution) if found.resolution else None,
        "languages": Counter(s.language for s in seen),
        "unusable": [{"id": u.key, "kind": u.kind, "reason": u.reason} for u in found.unusable],
        "odd": [
            {"id": s.name, "where": s.sample.where, "remarks": s.all_remarks}
            for s in seen
            if s.all_remarks
        ],
        "alike": [[p.name for p in group] for group in found.alike],
        "test images seen in training": found.leaked,
        "keys not used": found.unused,
    }


def _spread(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {}
    marks = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    names = ("least", "5 %", "median", "95 %", "most")
    return dict(zip(names, (round(m) for m in marks.tolist()), strict=True))


def _head(found: Inspection) -> str:
    numbers = summary(found)
    usable = len(found.seen)
    tokens = numbers["tokens"]["total"]
    tiles = [
        (f"{usable:,}", "usable samples"),
        (f"{len(found.unusable):,}", "unusable"),
        (f"{numbers['images']:,}", "images"),
        (f"{sum(map(bool, (s.all_remarks for s in found.seen))):,}", "with something odd"),
        (f"{sum(map(len, found.alike)):,}", "images with a double"),
        (f"{tokens:,}", "text tokens" if found.exact_tokens else "text tokens, estimated"),
    ]
    items = "".join(f"<li><b>{number}</b>{name}</li>" for number, name in tiles)
    splits = ", ".join(f"{count:,} {split}" for split, count in numbers["samples"].items())
    return (
        f"<header><h1>{escape(found.data)}</h1><p class='lede'>{escape(found.title)}: {splits or 0}"
        f"</p></header><ul class='tiles'>{items}</ul>"
    )


def _unusable(found: Inspection) -> str:
    rows = [(u.key, u.kind, u.reason) for u in found.unusable]
    lede = "Training leaves these out and lists them in quarantine.jsonl; nothing replaces them."
    return _table("Unusable", lede, ("sample", "what", "why"), rows)


def _unused(found: Inspection) -> str:
    rows = [(name, f"{count:,}") for name, count in found.unused.most_common()]
    lede = "Keys of records, messages or parts that change nothing; simple ones are kept in meta."
    return _table("Keys not used", lede, ("key", "records"), rows)


def _odd(found: Inspection) -> str:
    rows = [(remark, f"{count:,}") for remark, count in found.odd.most_common()]
    lede = "Usable as they are; the filters can leave them out."
    return _table("Odd", lede, ("remark", "samples"), rows)


def _alike(found: Inspection) -> str:
    """Groups of doubles, those first of which some are in train and some in test."""
    if not found.alike:
        return ""
    images = {
        p.key: image
        for seen in found.seen
        for p, image in zip(seen.images, seen.sample.all_images, strict=True)
    }

    def halves(group: list[ImageStats]) -> list[str]:
        return sorted(set().union(*(found.halves[p.key] for p in group)), reverse=True)

    groups = sorted(found.alike, key=lambda group: -len(halves(group)))
    cards = "".join(
        f"<div class='card'><div class='images small'>"
        f"{''.join(_thumbnail(images[p.key]) for p in group[:4] if p.key in images)}</div>"
        f"<p class='quiet'>{len(group):,} in {' and '.join(halves(group)) or 'unusable samples'}: "
        f"{escape(', '.join(p.name for p in group[:6]))}</p></div>"
        for group in groups[:GROUPS]
    )
    lede = (
        "Different files that show the same; chiasm data filter --rules near-duplicate keeps one."
    )
    leaked = f" {found.leaked:,} images of the test half are also in another." * bool(found.leaked)
    more = f" The first {GROUPS} groups; all are in the JSON." * (len(groups) > GROUPS)
    return (
        f"<section><h2>Images alike <small>{len(groups):,}</small></h2>"
        f"<p class='lede'>{lede}{leaked}{more}</p>"
        f"<div class='scroll gallery'>{cards}</div></section>"
    )


def _table(title: str, lede: str, heads: Iterable[str], rows: list[tuple]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in rows[:LISTED]
    )
    more = f" The first {LISTED:,} of {len(rows):,}; all are in the JSON." * (len(rows) > LISTED)
    return (
        f"<section><h2>{title} <small>{len(rows):,}</small></h2><p class='lede'>{lede}{more}</p>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div></section>"
    )


def _sizes(found: Inspection) -> str:
    images = [p for s in found.seen for p in s.images]
    kind = "tokens of text" if found.exact_tokens else "tokens of text (estimated)"
    charts = [
        _histogram(kind, [s.tokens for s in found.seen]),
        _histogram("width of images", [p.width for p in images]),
        _histogram("height of images", [p.height for p in images]),
        _shares("language", Counter(s.language for s in found.seen)),
        _shares("format of images", Counter(p.format for p in images)),
    ]
    return f"<section><h2>Sizes</h2><div class='charts'>{''.join(charts)}</div></section>"


def _histogram(title: str, values: list[int]) -> str:
    """Bars of what is usual; what lies beyond is counted in words."""
    if not values:
        return ""
    low, high = usual(values)
    inner = [v for v in values if low <= v <= high]
    counts, edges = np.histogram(inner, BARS)
    top = max(1, int(counts.max()))
    bars = "".join(
        f"<rect x='{i * 10}' y='{60 - 60 * n / top:.1f}' width='9' height='{60 * n / top:.1f}'>"
        f"<title>{edges[i]:.0f} to {edges[i + 1]:.0f}: {n:,}</title></rect>"
        for i, n in enumerate(counts.tolist())
    )
    beyond = f"; {len(values) - len(inner):,} beyond" * (len(inner) < len(values))
    return (
        f"<figure class='card'><figcaption>{title}</figcaption>"
        f"<svg viewBox='0 0 {BARS * 10} 62' role='img' aria-label='{title}'>{bars}</svg>"
        f"<p>{edges[0]:,.0f} to {edges[-1]:,.0f}, median {np.median(values):,.0f}{beyond}</p>"
        "</figure>"
    )


def _shares(title: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    total = counts.total()
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{count:,} ({count / total:.0%})</dd>"
        for name, count in counts.most_common(8)
    )
    return f"<figure class='card'><figcaption>{title}</figcaption><dl>{rows}</dl></figure>"


def _gallery(found: Inspection) -> str:
    odd = [s for s in found.seen if s.all_remarks]
    rest = [s for s in found.seen if not s.all_remarks]
    shown = [*spaced(odd, SHOWN // 2), *spaced(rest, SHOWN - min(len(odd), SHOWN // 2))]
    keys = {p.key for group in found.alike for p in group}
    cards = "".join(_card(s, any(p.key in keys for p in s.images)) for s in shown)
    buttons = "".join(
        f"<button type='button' data-show='{tag}' aria-pressed='{str(not tag).lower()}'>"
        f"{label}</button>"
        for tag, label in (("", "All"), ("odd", "Odd"), ("alike", "With a double"))
    )
    return (
        f"<section><h2>Samples <small>{len(shown):,} of {len(found.seen):,}</small></h2>"
        f"<div class='filters' role='group' aria-label='Which samples to show'>{buttons}"
        "<input type='search' placeholder='Find words' aria-label='Find words'>"
        "<span class='key'><span>underlined</span>: what a model learns to say</span></div>"
        f"<div class='gallery'>{cards}</div>"
        "<p class='none' hidden>None of the samples shown here; all are in the JSON.</p></section>"
    )


def spaced(items: list[Seen], count: int) -> list[Seen]:
    """At most `count`, evenly through the data set."""
    step = max(1.0, len(items) / max(1, count))
    return [items[int(i * step)] for i in range(min(count, len(items)))]


def _card(seen: Seen, alike: bool) -> str:
    turns = "".join(
        f"<p class='{turn.role}'><b>{turn.role}</b> <span>{escape(_shown(turn.content))}</span></p>"
        for turn in seen.sample.turns[:8]
    )
    tags = f"{'odd ' * bool(seen.all_remarks)}{'alike' * alike}".strip()
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in seen.all_remarks)
    sizes = ", ".join(f"{p.width}x{p.height} {p.format}" for p in seen.images[:4])
    images = "".join(map(_thumbnail, seen.sample.all_images[:4]))
    return (
        f"<article class='card' data-tags='{tags}'><div class='images'>{images}</div>"
        f"<h3>{escape(seen.name)}</h3><p class='quiet'>{seen.split} · {escape(sizes)} · "
        f"{seen.tokens:,} tokens · {escape(seen.language)}</p>{turns}<ul>{remarks}</ul></article>"
    )


def _shown(parts: Iterable) -> str:
    text = "".join(p.text if isinstance(p, Text) else "▣ " for p in parts)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _thumbnail(image: Image) -> str:
    try:
        thumbnail = image.load()
    except DataError:  # gone since it was measured
        return ""
    thumbnail.thumbnail((EDGE, EDGE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' loading='lazy' src='data:image/jpeg;base64,{data}'>"
