"""chat and draw on the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import PIL.Image
from rich.console import Console

from chiasm.core.device import model_device
from chiasm.core.errors import ChiasmError, DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Sample, Text, Video, user
from chiasm.data.processor import Processor
from chiasm.generation.attribution import look
from chiasm.generation.best_of import draw, redraw
from chiasm.generation.edit import inpaint, variation
from chiasm.generation.generator import Generator
from chiasm.hub.generic import CANNOT, GenericVLM
from chiasm.hub.generic_replies import GenericGenerator
from chiasm.hub.load import load
from chiasm.nn.precision import Precision, held_in
from chiasm.recipes.terminal import Way, escaped, way_of
from chiasm.serve.engine import Engine
from chiasm.serve.job import Job, Update

CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Names of files that are shown as videos."""


def responder(run: Path, device: str | None = None, precision: Precision = "none") -> Generator:
    """A loaded model as a Generate, on a device as hub.load.load takes it; on an accelerator with
    bfloat16 its weights are held in that. DataError if the folder holds an encoder or a
    tokenizer."""
    model, processor = load(run, device)
    if isinstance(model, GenericVLM):
        Console(stderr=True).print(
            f"{run}: runs by its own class, {model.kind}: {CANNOT}", soft_wrap=True, markup=False
        )
        return GenericGenerator(model, processor)  # type: ignore[return-value]
    if not isinstance(processor, Processor):
        raise DataError(
            f"{run}: holds a {type(model).__name__}, which does not talk; "
            "give the folder of an MLLM or a unified model"
        )
    weights = held_in(model_device(model))
    return Generator(model, processor, precision=precision, weights=weights)


class Talk:
    """One conversation with a model on an engine as a server has (serve/engine.py), which computes
    what was said before only once. Replies are printed as they are written, images shown where
    the terminal can."""

    def __init__(self, respond: Generator | GenericGenerator, sampling: SamplingParams):
        self.respond = respond
        own = isinstance(respond, Generator)
        self.engine = Engine("chat", respond, slots=2) if own else None
        self.sampling = sampling
        self.way: Way | None = way_of(os.environ, sys.stdout.isatty())
        self.turns: list[Message] = []
        self.drawn: PIL.Image.Image | None = None

    def __enter__(self) -> Talk:
        if self.engine is not None:
            self.engine.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.engine is not None:
            self.engine.stop()

    def say(self, asked: Message, sampling: SamplingParams | None = None) -> None:
        """Print the reply to a turn; both belong to the conversation then. Ctrl-C ends the reply,
        of which what there is is kept. Raises DataError, NotGenerativeError."""
        if self.engine is None:
            chosen = sampling or self.sampling
            said = self.respond([Sample((*self.turns, asked))], chosen)
            text = "".join(piece.text for _, piece in said)
            sys.stdout.write(f"{text}\n")
            self.turns += [asked, Message("assistant", (Text(text),))]
            return
        heard: SimpleQueue[Update] = SimpleQueue()
        job = Job(Sample((*self.turns, asked)), sampling or self.sampling, heard.put)
        self.engine.submit(job)
        text, parts = "", []
        try:
            while True:
                update = heard.get()
                if update.error is not None:
                    raise update.error
                text += update.text
                sys.stdout.write(update.text)
                if update.image is not None:
                    self.drawn = update.image
                    parts.append(Image(update.image))
                    self.show(update.image)
                sys.stdout.flush()
                if update.last:
                    break
        except KeyboardInterrupt:
            self.engine.cancel(job)
        sys.stdout.write("\n")
        said = [*([Text(text)] if text else []), *parts]
        self.turns += [asked, Message("assistant", tuple(said))]

    def look(self) -> None:
        """Show where the model looked when it gave its last reply."""
        if self.way is None:
            raise DataError("this terminal shows no images; chiasm serve's page does")
        if not self.turns or not any(isinstance(p, Text) for p in self.turns[-1].content):
            raise DataError("there is no reply yet to be explained")
        if self.engine is None:
            raise DataError("a model that runs by its own class is not explained")
        respond, sample = self.engine.respond, Sample(tuple(self.turns[:-1]))
        reply = self.turns[-1].text
        act = partial(look, respond.model, respond.processor, sample, reply)
        for each in self.engine.call(act).result():
            self.show(each.shown())

    def show(self, image: PIL.Image.Image) -> None:
        if self.way is not None:
            sys.stdout.write(escaped(image, self.way))


def ask(run: Path, image: Path | None, text: str, sampling: SamplingParams) -> None:
    """Print the reply to one question as it is written."""
    parts = _shown(image) if image else []
    with Talk(responder(run), sampling) as talk:
        talk.say(user(*parts, text))


HELP = (
    "Ask away. /image PATH brings an image, /draw WORDS draws one, /save PATH keeps it, /look "
    "shows where the model looked. Ctrl-C ends a reply, an empty line or Ctrl-D the conversation."
)
DRAWING = {"temperature": 1.0, "top_p": 0.95, "guidance": 1.5, "max_images": 1, "draw_first": True}


def session(run: Path, image: Path | None, sampling: SamplingParams) -> None:
    """Read questions until the input ends. A line "/image PATH" brings a new image and starts
    the conversation afresh."""
    console, pending = Console(), _shown(image) if image else []
    with Talk(responder(run), sampling) as talk:
        for part in pending:
            _present(talk, part)
        console.print(HELP, highlight=False)
        while line := _read(console):
            try:
                pending = _obey(talk, line, pending)
            except ChiasmError as error:
                console.print(f"[red]{error}[/red]", highlight=False)


def _obey(talk: Talk, line: str, pending: list[Any]) -> list[Any]:
    """What a line of a session wants; the images that the next question is about."""
    word, _, rest = line.partition(" ")
    path = Path(rest.strip()).expanduser()
    if word == "/image":
        pending, talk.turns = _shown(path), []
        for part in pending:
            _present(talk, part)
        return pending
    if word == "/draw":
        seed = len(talk.turns)  # another image each time it is asked for
        talk.say(user(*pending, rest), replace(talk.sampling, **DRAWING, seed=seed))
    elif word == "/save":
        if talk.drawn is None:
            raise DataError("there is no drawing yet to be kept; /draw one")
        talk.drawn.save(path)
    elif word == "/look":
        talk.look()
        return pending
    else:
        talk.say(user(*pending, line))
    return []


def _present(talk: Talk, part: Any) -> None:
    if isinstance(part, Image):
        talk.show(part.load())


def _shown(path: Path) -> list[Any]:
    """An image or a clip to ask about; a bad image is told before a model is read."""
    part = Video(path) if path.suffix.lower() in CLIPS else Image(path)
    if isinstance(part, Image):
        part.load()
    return [part]


@dataclass(frozen=True)
class Change:
    """An image to change. mask: only where it is light; vary: only this share of it, at random;
    neither: the model is shown it beside the words."""

    image: Path
    mask: Path | None = None
    vary: float = 0.0


def draw_images(
    run: Path,
    text: str,
    out: Path,
    count: int,
    candidates: int,
    sampling: SamplingParams,
    change: Change | None = None,
) -> None:
    """Draw `count` images of a text into one file, side by side, each the best of `candidates`
    (generation/best_of.py). NotGenerativeError if the model cannot draw, DataError for an image or
    mask that cannot be used."""
    given = {} if change is None else _open(change)
    respond = responder(run)
    if not respond.codes_per_image:
        raise NotGenerativeError(
            f"{run}: this model reads images but cannot draw them; use a unified model"
        )
    texts = [text] * count
    if change is not None and change.mask is None and not change.vary:
        images = redraw(respond, Image(given["image"]), texts, sampling)
    else:
        edit, codec = None, respond.processor.codec
        if "mask" in given:
            edit = inpaint(codec, given["image"], given["mask"])
        elif change is not None:
            edit = variation(codec, given["image"], change.vary, sampling.seed)
        drawings = draw(respond, texts, sampling, candidates, edit)
        images = [drawing.best for drawing in drawings]
    width, height = (max(sides) for sides in zip(*(p.size for p in images), strict=True))
    row = PIL.Image.new("RGB", (width * count, height))
    for place, image in enumerate(images):
        row.paste(image, (place * width, 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    row.save(out)
    Console().print(f"{out}: {count} of {width}×{height} pixels")


def _open(change: Change) -> dict[str, PIL.Image.Image]:
    """Its images, read before the model: a bad one is told at once."""
    files = {"image": change.image, "mask": change.mask}
    return {name: Image(file).load() for name, file in files.items() if file is not None}


def _read(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""
