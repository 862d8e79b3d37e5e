"""chiasm data synthesize, pdf, webpages and video: make a data set from something else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from chiasm.cli.options import NewFolder, Source

if TYPE_CHECKING:
    from chiasm.data.ingest.collect import Collected


@dataclass(kw_only=True)
class CollectOptions:
    out: NewFolder
    """Folder for train.jsonl, test.jsonl, images/ and skipped.jsonl."""

    def report(self, found: Collected) -> None:
        """Print what was made and what was skipped."""
        for half, number in found.samples.items():
            if number:
                Console().print(f"{half}: {number} samples in {escape(str(self.out / half))}.jsonl")
        if found.skipped:
            name, reason = next(iter(found.skipped.items()))
            Console(stderr=True).print(
                f"{len(found.skipped)} skipped, listed in {escape(str(self.out))}/skipped.jsonl; "
                f"the first: {escape(name)}: {escape(reason)}",
                soft_wrap=True,
            )


@dataclass(kw_only=True)
class Synthesize:
    """Make images with exact questions and answers."""

    kind: Positional[Annotated[str, arg(metavar="KIND")]]
    """charts, tables, receipts, forms, pages, scenes, documents or slips."""
    out: NewFolder
    """Folder for train.jsonl, test.jsonl and images/."""
    count: int = 1000
    """Training samples; a tenth as many test samples are added, sharing no content."""
    seed: int = 0
    """Another seed, another set."""
    workers: int = 1
    """Processes; their number changes nothing in the files."""

    def __call__(self) -> None:
        from chiasm.data.synthetic.make import make

        made = make(self.kind, self.out, self.count, self.seed, self.workers)
        for half, number in made.items():
            Console().print(f"{half}: {number} samples in {escape(str(self.out / half))}.jsonl")


@dataclass(kw_only=True)
class Pdf(CollectOptions):
    """Make samples of PDF files: transcription, regions, reading order, degraded copies."""

    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Every PDF below it; a file's pages are all in the same half."""
    side: int = 1024
    """Pixels of a page's longer side."""
    pages: int = 50
    """At most so many pages of a file."""
    scans: int = 1
    """Copies of every page that look scanned: skew, blur, noise, JPEG."""
    seed: int = 0
    """Seed of the questions and the degradation."""

    def __call__(self) -> None:
        from chiasm.data.ingest.pdf import PdfOptions, ingest_pdf

        options = PdfOptions(self.side, self.pages, self.scans, self.seed)
        self.report(ingest_pdf(self.folder, self.out, options))


@dataclass(kw_only=True)
class Webpages(CollectOptions):
    """Make samples of web pages: title, headings, where things are, transcription."""

    source: Source
    """An address, a text file with an address a line, or a folder of HTML files."""
    width: int = 1024
    """Of the browser window in pixels."""
    height: int = 768
    """Of the browser window in pixels."""
    wait: float = 15.0
    """Seconds a page may take to load."""
    seed: int = 0
    """Seed of the questions."""
    browser: Path | None = None
    """A Chromium executable (default: the system's)."""

    def __call__(self) -> None:
        from chiasm.data.ingest.shots import ShotOptions, ingest_shots

        options = ShotOptions(self.width, self.height, self.wait, self.seed, self.browser)
        self.report(ingest_shots(self.source, self.out, options))


@dataclass(kw_only=True)
class Video(CollectOptions):
    """Make samples of videos with captions beside them (x.mp4 with x.txt, x.srt or x.vtt)."""

    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Every video below it."""
    frames: int = 4
    """Images of every captioned span; 0 keeps the clip itself."""
    side: int = 512
    """Pixels of a frame's longer side, at most."""

    def __call__(self) -> None:
        from chiasm.data.ingest.video import VideoOptions, ingest_video

        self.report(ingest_video(self.folder, self.out, VideoOptions(self.frames, self.side)))
