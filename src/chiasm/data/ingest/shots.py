"""Web pages: a screenshot with the text and boxes of its DOM as the answers (extra `shots`)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Image, Sample
from chiasm.data.boxes import HINT, write_box
from chiasm.data.ingest.browser import browser, find_browser
from chiasm.data.ingest.collect import Collected, Skip, Source, collect, files_in
from chiasm.data.ingest.layout import turns

SCRIPT = Path(__file__).with_name("page.js")
MIN_SHOWN = 0.3  # of the window, below which a screenshot is not cut to whole paragraphs


@dataclass(frozen=True)
class ShotOptions:
    """width, height: the browser window in pixels. wait: seconds a page may take to load.
    browser: the executable; None: looked for."""

    width: int = 1024
    height: int = 768
    wait: float = 15.0
    seed: int = 0
    browser: Path | None = None


def ingest_shots(pages: str, out: Path, options: ShotOptions, show: Show = Bar) -> Collected:
    """An address, a text file with an address a line, or every HTML file below a folder (which
    then may load files of that folder and nothing else). Raises DataError, ConfigError,
    MissingExtraError."""
    if options.width < 64 or options.height < 64 or options.wait <= 0:
        raise ConfigError(
            f"--width {options.width} --height {options.height} --wait {options.wait}: expected "
            "at least 64 pixels and more than 0 seconds"
        )
    found = Collected()
    folder = Path(pages).expanduser()
    sources = _addresses(pages) or files_in(folder, {".html", ".htm"}, found.skipped.__setitem__)
    with browser(find_browser(options.browser)) as running:
        read = partial(read_page, running=running, root=folder.resolve(), options=options)
        return collect(sources, read, out, found, show)


def _addresses(pages: str) -> list[Source]:
    """The addresses that were given or stand in the given text file, each once; else none."""
    lines = [pages]
    if Path(pages).is_file() and not pages.lower().endswith((".html", ".htm")):
        lines = Path(pages).read_text(encoding="utf-8", errors="replace").split()
    found = [line for line in dict.fromkeys(lines) if line.startswith(("http://", "https://"))]
    if Path(pages).is_file() and not found and lines != [pages]:
        raise DataError(f"{pages}: holds no http:// or https:// address; write one a line")
    return [Source(line, line) for line in found]


def read_page(
    source: Source, _skip: Skip, running: Any, root: Path, options: ShotOptions
) -> Iterator[Sample]:
    """The samples of one page: title, headings, places and names of controls; transcription."""
    screenshot, seen = capture(source, running, root, options)
    texts, shown = fold(seen["texts"], screenshot.height)
    screenshot = screenshot.crop((0, 0, screenshot.width, shown))
    controls = [c for c in seen["controls"] if c["box"][3] <= shown]
    if not texts:
        raise DataError("shows no text")
    file = io.BytesIO()
    screenshot.save(file, "PNG")
    image = Image(file.getvalue(), source.name)
    meta = {
        "page": source.name,
        "title": seen["title"],
        "caption": seen["title"] or texts[0]["text"],
        "texts": texts,
        "controls": controls,
    }
    random = Random(f"{options.seed}/{source.key}")
    pairs = ask(seen["title"], texts, controls, screenshot.size, random)
    yield Sample(turns(image, pairs), f"{source.name}#page", "shots", True, meta)
    if all(text["whole"] for text in texts):
        whole = [("Transcribe the page.", "\n".join(text["text"] for text in texts))]
        yield Sample(turns(image, whole), f"{source.name}#text", "shots", meta=meta)


def capture(
    source: Source, running: Any, root: Path, options: ShotOptions
) -> tuple[PIL.Image.Image, dict]:
    """The window's image and what page.js says of it. Raises DataError for a page that does not
    load."""
    from playwright.sync_api import Error  # pyright: ignore[reportMissingImports]

    size = {"width": options.width, "height": options.height}
    try:
        page = running.new_page(viewport=size, service_workers="block")
    except Error as error:
        raise DataError(f"the browser is gone: {_first_line(error)}") from None
    page.set_default_timeout(options.wait * 1000)
    if source.path is not None:
        page.route("**/*", partial(_within, root))
    try:
        address = source.path.resolve().as_uri() if source.path else source.name
        answered = page.goto(address)
        if source.path is None and (answered is None or not answered.ok):
            raise DataError(f"answered {answered.status if answered else 'nothing'}")
        page.evaluate("document.fonts.ready.then(() => true)")
        seen = page.evaluate(SCRIPT.read_text(encoding="utf-8"))
        shot = page.screenshot(animations="disabled")
    except Error as error:
        raise DataError(f"does not load: {_first_line(error)}") from None
    finally:
        page.close()
    with PIL.Image.open(io.BytesIO(shot)) as image:
        return image.convert("RGB"), seen


def _within(root: Path, route: Any) -> None:
    """Let a local page load what lies in its folder, and no other file or address."""
    parts = urlsplit(route.request.url)
    inside = parts.scheme == "file" and Path(unquote(parts.path)).resolve().is_relative_to(root)
    if inside or parts.scheme in ("data", "blob", "about"):
        route.continue_()
    else:
        route.abort()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def fold(texts: list[dict], height: int) -> tuple[list[dict], int]:
    """The texts above the first one that the window's lower edge cuts, and how many pixels of
    the window they take; everything, where that would be too little."""
    shown, kept = height, texts
    while cut := [t for t in kept if not t["whole"] and t["box"][3] > shown]:
        shown = int(min(t["box"][1] for t in cut))
        kept = [t for t in texts if t["box"][1] < shown]
        kept = [{**t, "whole": t["whole"] and t["box"][3] <= shown} for t in kept]
    return (kept, shown) if shown >= MIN_SHOWN * height else (texts, height)


def ask(
    title: str, texts: list[dict], controls: list[dict], size: tuple[int, int], random: Random
) -> list[tuple[str, str]]:
    """Title and headings; where controls and texts are; what stands in a box."""
    whole = [text for text in texts if text["whole"]]
    pairs = []
    words = {word.lower() for text in texts for word in text["text"].split()}
    named = [word.lower() in words for word in title.split()]
    if named and sum(named) >= 0.6 * len(named):  # a title the page does not show is no reading
        pairs.append(("What is the title of this page?", title))
    headings = [t for t in texts if t["tag"] == "h1"] or [t for t in texts if t["tag"] == "h2"]
    if headings and all(heading["whole"] for heading in headings):
        said = "\n".join(heading["text"] for heading in headings)
        pairs.append(("Transcribe the main heading(s).", said))
    counted = Counter(thing["text"] for thing in controls)
    known = [thing for thing in controls if counted[thing["text"]] == 1]
    for thing in random.sample(known, min(3, len(known))):
        box = write_box(thing["box"], size)
        pairs.append((f"Where is the {thing['role']} '{thing['text']}'? {HINT}", box))
    for thing in random.sample(known, min(1, len(known))):
        box = write_box(thing["box"], size)
        pairs.append((f"What does the {thing['role']} at {box} say?", thing["text"]))
    for text in random.sample(whole, min(2, len(whole))):
        pairs.append((f"Transcribe the text at {write_box(text['box'], size)}.", text["text"]))
    counted = Counter(text["text"] for text in texts)
    short = [t for t in whole if counted[t["text"]] == 1 and len(t["text"]) <= 60]
    for text in random.sample(short, min(2, len(short))):
        asked = f"Where is the text '{text['text']}'? {HINT}"
        pairs.append((asked, write_box(text["box"], size)))
    if not pairs:
        raise DataError("shows nothing whole that could be asked about")
    return pairs
