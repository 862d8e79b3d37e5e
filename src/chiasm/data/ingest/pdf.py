"""PDF files: pages as images, their text layer as the answers (pypdfium2, extra `pdf`)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import PIL.Image

from chiasm.core.errors import ConfigError, DataError, MissingExtraError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Image, Sample
from chiasm.data.boxes import Box
from chiasm.data.degrade import scan_jpeg
from chiasm.data.ingest.collect import Collected, Skip, Source, collect, files_in
from chiasm.data.ingest.layout import Line, order_pairs, region_pairs, turns

LEAST_CONTRAST = 8
"""Levels of gray between the ink of a text and its ground, of 255."""


@dataclass(frozen=True)
class PdfOptions:
    """side: pixels of a page's longer side. pages: at most so many of a file. scans: degraded
    copies of every page."""

    side: int = 1024
    pages: int = 50
    scans: int = 1
    seed: int = 0


def ingest_pdf(folder: Path, out: Path, options: PdfOptions, show: Show = Bar) -> Collected:
    """Every PDF below a folder. Raises DataError, ConfigError, MissingExtraError."""
    try:
        import pypdfium2  # noqa: F401
    except ImportError:
        raise MissingExtraError("pypdfium2", "pdf", "Reading PDF files") from None
    if options.side < 64 or options.pages < 1 or options.scans < 0:
        raise ConfigError(
            f"--side {options.side} --pages {options.pages} --scans {options.scans}: expected at "
            "least 64, 1 and 0"
        )
    found = Collected()
    sources = files_in(folder, {".pdf"}, found.skipped.__setitem__)
    return collect(sources, partial(read_pdf, options=options), out, found, show)


def read_pdf(source: Source, skip: Skip, options: PdfOptions) -> Iterator[Sample]:
    """The samples of all pages: transcription, regions with order, degraded copies."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        raise DataError(f"not a readable PDF: {error}; repair or remove the file") from None
    try:
        if len(document) > options.pages:
            skip(
                f"{source.name} after page {options.pages}",
                f"{len(document) - options.pages} pages more than --pages",
            )
        for number in range(min(len(document), options.pages)):
            try:
                yield from _page_samples(document[number], source, number + 1, options)
            except (pypdfium2.PdfiumError, DataError) as error:
                skip(f"{source.name} page {number + 1}", str(error))
    finally:
        document.close()


def _page_samples(page: Any, source: Source, number: int, options: PdfOptions) -> Iterator[Sample]:
    longest = max(page.get_size())
    if longest <= 0:
        raise DataError("the page has no area")
    bitmap = page.render(scale=options.side / longest)
    rendered = bitmap.to_pil().convert("RGB")
    lines = text_lines(page, bitmap.get_posconv(page), rendered)
    if not lines:
        raise DataError(
            "no text layer that can be seen: a scan or a drawing; recognise its text first (OCR)"
        )
    text = "\n".join(line.text for line in lines)
    if sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" for c in text) > 0.05 * len(text):
        raise DataError("the text layer has no meaning: its fonts name no characters")
    random = Random(f"{options.seed}/{source.key}/{number}")
    file = io.BytesIO()
    rendered.save(file, "PNG")
    where = f"{source.name} page {number}"
    image = Image(file.getvalue(), where)
    meta = {
        "file": source.name,
        "page": number,
        "caption": f"a page that begins {lines[0].text}",
        "lines": [{"text": x.text, "box": [round(v, 1) for v in x.box]} for x in lines],
    }
    name = f"{source.name}#{number}"
    whole = [("Transcribe the page.", text)]
    order = order_pairs(lines, random)
    regions = region_pairs(lines, rendered.size, random)
    yield Sample(turns(image, whole), f"{name}-text", "pdf", meta=meta)
    yield Sample(turns(image, regions + order), f"{name}-regions", "pdf", True, meta)
    for copy in range(options.scans):
        # Skew moves the text, so no boxes are asked of a degraded copy, nor recorded.
        bare = {key: value for key, value in meta.items() if key != "lines"}
        scanned = Image(scan_jpeg(rendered, random), where)
        pairs = whole + order
        yield Sample(
            turns(scanned, pairs), f"{name}-scan{copy}", "pdf", True, {**bare, "degraded": True}
        )


@dataclass(frozen=True)
class _Run:
    """Text of one font on one line. page: its box in points (left, bottom, right, top). shown: the
    same in pixels of the rendered page. quarters: turns clockwise by which it is shown."""

    page: Box
    shown: Box
    quarters: int

    @property
    def upright(self) -> Box:
        """`shown` turned back, so that its text would run from left to right."""
        x0, y0, x1, y1 = self.shown
        return ((x0, y0, x1, y1), (y0, -x1, y1, -x0), (-x1, -y1, -x0, -y0), (-y1, x0, -y0, x1))[
            self.quarters
        ]


def text_lines(page: Any, position: Any, rendered: PIL.Image.Image) -> list[Line]:
    """The lines of a page's text layer in its order; boxes in pixels of the rendered page.

    PDFium gives a rectangle for every run of one font; runs that touch on one line as it is shown
    are joined. Its text layer holds what is not shown as well: outside the sheet, the crop box or
    the clip path, in layers that are switched off, without ink. A run of which less than half is
    rendered, or whose box is of one colour, is left out.
    (findings/pdf_text_that_is_not_shown.sh)
    """
    size, gray = rendered.size, rendered.convert("L")
    layer = page.get_textpage()
    joined: list[_Run] = []
    for index in range(layer.count_rects()):
        run = _run(layer, layer.get_rect(index), position, page.get_rotation())
        if _share_inside(run.shown, size) < 0.5 or _flat(gray, run.shown):
            continue
        if joined and joined[-1].quarters == run.quarters and _touch(joined[-1], run):
            before = joined.pop()
            run = _Run(
                _around(before.page, run.page), _around(before.shown, run.shown), run.quarters
            )
        joined.append(run)
    lines = []
    for run in joined:
        text = _clean(layer.get_text_bounded(*run.page))
        if text:
            lines.append(Line(text, _clipped(run.shown, size)))
    layer.close()
    return lines


def _run(layer: Any, box: Box, position: Any, rotation: int) -> _Run:
    import pypdfium2.raw as pdfium

    left, bottom, right, top = box
    (x0, y0), (x1, y1) = position.to_bitmap(left, top), position.to_bitmap(right, bottom)
    shown = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    width, height = max(right - left, 1.0), max(top - bottom, 1.0)
    middle = ((left + right) / 2, (bottom + top) / 2)
    char = pdfium.FPDFText_GetCharIndexAtPos(layer, *middle, width / 2, height / 2)
    angle = pdfium.FPDFText_GetCharAngle(layer, char) if char >= 0 else 0.0
    return _Run(box, shown, round((rotation + math.degrees(angle)) / 90) % 4)


def _around(one: Box, other: Box) -> Box:
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        max(one[3], other[3]),
    )


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    (x0, y0, x1, y1), (width, height) = box, size
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _share_inside(box: Box, size: tuple[int, int]) -> float:
    """The share of a box's area that lies in an image of this size."""
    x0, y0, x1, y1 = _clipped(box, size)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(x1 - x0, 0) * max(y1 - y0, 0) / area if area > 0 else 0.0


def _flat(gray: PIL.Image.Image, box: Box) -> bool:
    """Whether a box of the rendered page is of one colour, so that no text can be seen in it."""
    x0, y0, x1, y1 = _clipped(box, gray.size)
    shown = gray.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
    low, high = cast("tuple[int, int]", shown.getextrema())  # one band
    return high - low < LEAST_CONTRAST


def _touch(before: _Run, after: _Run) -> bool:
    """Whether a run goes on where another ended: half of its height beside it, at most one height
    away."""
    one, other = before.upright, after.upright
    height = min(one[3] - one[1], other[3] - other[1])
    overlap = min(one[3], other[3]) - max(one[1], other[1])
    return overlap > 0.5 * height and -height < other[0] - one[2] < height


def _clean(text: str) -> str:
    """One line without control characters; PDFium marks a hyphen at a line's end by U+0002 or
    U+FFFE."""
    text = text.replace("\x02", "-").replace("\ufffe", "-")
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
