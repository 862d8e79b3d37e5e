"""chat and draw on the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from rich.console import Console

from chiasm.core.errors import DataError, NotGenerativeError
from chiasm.core.protocols import Sampling
from chiasm.core.sample import Image, Sample, Turn, Video, answer, question
from chiasm.data.processor import Processor
from chiasm.hub.load import load
from chiasm.infer.draw import draw, redraw
from chiasm.infer.edit import inpaint, variation
from chiasm.infer.generate import Generator

CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Names of files that are shown as videos."""


def responder(run: Path) -> Generator:
    """A loaded model as a Respond. DataError if the folder holds an encoder or a tokenizer."""
    model, processor = load(run)
    if not isinstance(processor, Processor):
        raise DataError(
            f"{run}: holds a {type(model).__name__}, which does not talk; "
            "give the folder of an MLLM or a unified model"
        )
    return Generator(model, processor)


def ask(run: Path, image: Path | None, text: str, sampling: Sampling) -> None:
    """Print the reply to one question as it is written."""
    parts: list[Any] = [_media(image)] if image else []
    for part in parts:
        if isinstance(part, Image):
            part.load()  # a bad picture is told before the model is read
    sample = Sample((question(*parts, text),))
    _say(responder(run), sample, sampling)


def session(run: Path, image: Path | None, sampling: Sampling) -> None:
    """Read questions until the input ends. A line "/image PATH" brings a new picture and starts
    the conversation afresh."""
    console = Console()
    respond = responder(run)
    pending = [_media(image)] if image else []
    turns: list[Turn] = []
    console.print("Ask away. /image PATH brings a picture, an empty line or Ctrl-D ends.")
    while line := _read(console):
        if line.startswith("/image "):
            path = Path(line.removeprefix("/image ").strip()).expanduser()
            pending, turns = [_media(path)], []
            continue
        asked = question(*pending, line)
        try:
            reply = _say(respond, Sample((*turns, asked)), sampling)
        except DataError as error:
            console.print(f"[red]{error}[/red]")
            continue
        turns += [asked, answer(reply)]
        pending = []


@dataclass(frozen=True)
class Change:
    """A picture to change. mask: only where it is light; vary: only this share of it, at random;
    neither: the model is shown it beside the words."""

    picture: Path
    mask: Path | None = None
    vary: float = 0.0


def draw_pictures(
    run: Path,
    text: str,
    out: Path,
    count: int,
    candidates: int,
    sampling: Sampling,
    change: Change | None = None,
) -> None:
    """Draw `count` pictures of a text into one file, side by side, each the best of `candidates`
    (infer/draw.py). NotGenerativeError if the model cannot draw, DataError for a picture or mask
    that cannot be used."""
    given = {} if change is None else _open(change)
    respond = responder(run)
    if not respond.codes_per_image:
        raise NotGenerativeError(
            f"{run}: this model reads pictures but cannot draw them; use a unified model"
        )
    texts = [text] * count
    if change is not None and change.mask is None and not change.vary:
        pictures = redraw(respond, Image(given["picture"]), texts, sampling)
    else:
        edit, codec = None, respond.processor.codec
        if "mask" in given:
            edit = inpaint(codec, given["picture"], given["mask"])
        elif change is not None:
            edit = variation(codec, given["picture"], change.vary, sampling.seed)
        drawings = draw(respond, texts, sampling, candidates, edit)
        pictures = [drawing.best for drawing in drawings]
    width, height = (max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
    row = PIL.Image.new("RGB", (width * count, height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * width, 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    row.save(out)
    Console().print(f"{out}: {count} of {width}×{height} pixels")


def _open(change: Change) -> dict[str, PIL.Image.Image]:
    """Its pictures, read before the model: a bad one is told at once."""
    files = {"picture": change.picture, "mask": change.mask}
    return {name: Image(file).load() for name, file in files.items() if file is not None}


def _say(respond: Generator, sample: Sample, sampling: Sampling) -> str:
    reply = ""
    for _, piece in respond([sample], sampling):
        reply += piece.text
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return reply


def _media(path: Path) -> Image | Video:
    return Video(path) if path.suffix.lower() in CLIPS else Image(path)


def _read(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""
