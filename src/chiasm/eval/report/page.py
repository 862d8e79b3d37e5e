"""The page: sections in reading order, put into the template, written as one file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from chiasm.eval.report import sections
from chiasm.eval.report.gallery import gallery
from chiasm.eval.report.source import read
from chiasm.eval.report.stability import stability

TITLE = "Two routes to a vision language model"
ORDER = (
    sections.cards,
    sections.comparison,
    sections.drawings,
    sections.parts,
    sections.curves,
    stability,
    sections.ledger,
    gallery,
    sections.method,
    sections.details,
    sections.left_out,
)


def render(folder: Path) -> Path:
    """Write folder/report.html, one self-contained file, from what the run left in `folder`.

    Only summary.json is required (DataError); every other part that is missing or unreadable is
    left out and named at the end of the page. Nothing on the page asks the network for anything.
    """
    run = read(folder)
    body = [sections.header(run, TITLE), *(section(run) for section in ORDER)]
    return write_page(folder / "report.html", TITLE, body)


def write_page(out: Path, title: str, body: Sequence[str]) -> Path:
    """Sections of HTML as one self-contained file; empty ones are left out."""
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), body="\n".join(filter(None, body)))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out
