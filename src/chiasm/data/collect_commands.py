"""`chiasm data make | pdf | shots | video`: the commands that make a data set from something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from chiasm.data.ingest.collect import Collected

Out = Annotated[Path, arg(aliases=["-o"])]


def make(
    kind: Positional[str], out: Out, count: int = 1000, seed: int = 0, workers: int = 1
) -> None:
    """Make images with exact questions and answers.

    Args:
        kind: charts, tables, receipts, forms, pages, scenes, documents or slips.
        out: Folder for train.jsonl, test.jsonl and images/.
        count: Training samples; a tenth as many test samples are added, sharing no content.
        seed: Another seed, another set.
        workers: Processes; their number changes nothing in the files.
    """
    from chiasm.data.synthetic.make import make as made

    for half, number in made(kind, out, count, seed, workers).items():
        Console().print(f"{half}: {number} samples in {escape(str(out / half))}.jsonl")


def pdf(
    folder: Positional[Path],
    out: Out,
    side: int = 1024,
    pages: int = 50,
    scans: int = 1,
    seed: int = 0,
) -> None:
    """Make samples of PDF files: transcription, regions, reading order, degraded copies.

    Args:
        folder: Every PDF below it; a file's pages are all in the same half.
        out: Folder for train.jsonl, test.jsonl, images/ and skipped.jsonl.
        side: Pixels of a page's longer side.
        pages: At most so many pages of a file.
        scans: Copies of every page that look scanned: skew, blur, noise, JPEG.
        seed: Seed of the questions and the degradation.
    """
    from chiasm.data.ingest.pdf import PdfOptions, ingest_pdf

    _report(ingest_pdf(folder, out, PdfOptions(side, pages, scans, seed)), out)


def shots(
    source: Positional[str],
    out: Out,
    width: int = 1024,
    height: int = 768,
    wait: float = 15.0,
    seed: int = 0,
    browser: Path | None = None,
) -> None:
    """Make samples of web pages: title, headings, where things are, transcription.

    Args:
        source: An address, a text file with an address a line, or a folder of HTML files.
        out: Folder for train.jsonl, test.jsonl, images/ and skipped.jsonl.
        width: Of the browser window in pixels.
        height: Of the browser window in pixels.
        wait: Seconds a page may take to load.
        seed: Seed of the questions.
        browser: A Chromium executable (default: the system's).
    """
    from chiasm.data.ingest.shots import ShotOptions, ingest_shots

    options = ShotOptions(width, height, wait, seed, browser)
    _report(ingest_shots(source, out, options), out)


def video(folder: Positional[Path], out: Out, frames: int = 4, side: int = 512) -> None:
    """Make samples of videos with captions beside them (x.mp4 with x.txt, x.srt or x.vtt).

    Args:
        folder: Every video below it.
        out: Folder for train.jsonl, test.jsonl, images/ and skipped.jsonl.
        frames: Images of every captioned span; 0 keeps the clip itself.
        side: Pixels of a frame's longer side, at most.
    """
    from chiasm.data.ingest.video import VideoOptions, ingest_video

    _report(ingest_video(folder, out, VideoOptions(frames, side)), out)


def _report(found: Collected, out: Path) -> None:
    for half, number in found.samples.items():
        if number:
            Console().print(f"{half}: {number} samples in {escape(str(out / half))}.jsonl")
    if found.skipped:
        name, reason = next(iter(found.skipped.items()))
        Console(stderr=True).print(
            f"{len(found.skipped)} skipped, listed in {escape(str(out))}/skipped.jsonl; the first: "
            f"{escape(name)}: {escape(reason)}",
            soft_wrap=True,
        )


COMMANDS = (make, pdf, shots, video)
