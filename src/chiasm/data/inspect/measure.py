"""Everything worth knowing about a data set before training on it, in one pass."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from chiasm.core.errors import DataError, PlaceholderError
from chiasm.core.image import Unreadable, open_image
from chiasm.core.sample import Image, Sample
from chiasm.data.convert import check_clips
from chiasm.data.fingerprint import Fingerprint, NearImages, fingerprint
from chiasm.data.formats.reading import Reading
from chiasm.data.language import language
from chiasm.data.load import open_data
from chiasm.data.parallel import mapped
from chiasm.data.resolution import Resolution, resolution

CountTokens = Callable[[str], int]

SMALL, LONG, FLAT = 16, 20.0, 2.0
"""Pixels a side; longer than wide; deviation of grey levels: beyond them an image is odd."""


def estimate_tokens(text: str) -> int:
    """Four bytes a token: the rule of thumb for English with a large vocabulary."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


@dataclass(frozen=True)
class ImageStats:
    """Size in pixels, file format, and what was odd or had to be converted. key: its path, or the
    digest of one that is no file."""

    key: str
    name: str
    width: int
    height: int
    format: str
    remarks: tuple[str, ...]


@dataclass
class Seen:
    """A usable sample and what is odd about it."""

    sample: Sample
    split: str
    tokens: int
    language: str
    images: tuple[ImageStats, ...]
    remarks: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.sample.name

    @property
    def all_remarks(self) -> list[str]:
        """Everything odd about the sample and its images."""
        return [*self.remarks, *dict.fromkeys(r for p in self.images for r in p.remarks)]


@dataclass(frozen=True)
class Unusable:
    """kind: "record", "placeholders" or "image or clip"; key: as the quarantine names it."""

    key: str
    kind: str
    reason: str


@dataclass
class Inspection:
    """What is usable, what is not and why, and which images look alike."""

    data: str
    title: str
    seen: list[Seen]
    unusable: list[Unusable]
    alike: list[list[ImageStats]]
    exact_tokens: bool
    unused: Counter[str] = field(default_factory=Counter)
    """How many records have a key that is not used, by its name."""
    resolution: Resolution | None = None
    """Of some of the images at their own size: the height of the text in them."""

    @cached_property
    def halves(self) -> dict[str, set[str]]:
        """The splits that show an image, by its key."""
        found: dict[str, set[str]] = defaultdict(set)
        for seen in self.seen:
            for image in seen.images:
                found[image.key].add(seen.split)
        return found

    @property
    def leaked(self) -> int:
        """Images of the test split that show what one of another split shows."""
        alone = {p.key for group in self.alike for p in group}
        groups = [[p.key for p in group] for group in self.alike]
        groups += [[key] for key in self.halves if key not in alone]
        return sum(
            "test" in self.halves[key]
            for keys in groups
            if len(set().union(*(self.halves[k] for k in keys))) > 1
            for key in keys
        )

    @property
    def odd(self) -> Counter[str]:
        """How often each remark was made."""
        return Counter(remark for seen in self.seen for remark in seen.all_remarks)


def inspect_data(
    data: str,
    name: str | None = None,
    images: Path | None = None,
    count_tokens: CountTokens | None = None,
    advance: Callable[[], None] = lambda: None,
    workers: int = 1,
    strict: bool = False,
) -> Inspection:
    """Read all splits of `data`, decode every image once, by `workers` threads. Nothing is
    changed. strict: a record with a key that is not used is unusable."""
    unusable: list[Unusable] = []

    def on_error(where: str, error: DataError) -> None:
        kind = "placeholders" if isinstance(error, PlaceholderError) else "record"
        unusable.append(Unusable(where, kind, str(error)))

    reading = Reading(on_error, images, strict=strict)
    sources = open_data(data, name, reading=reading)
    album = Album()
    seen: list[Seen] = []
    for split, source in sources.items():
        for sample, looks in _ahead(source.samples, workers):
            advance()
            album.add(looks)
            try:
                check_clips(sample)
                measured = tuple(album.stats(image) for image in sample.all_images)
            except DataError as error:
                unusable.append(Unusable(sample.name, "image or clip", str(error)))
                continue
            text = "\n".join(turn.text for turn in sample.turns)
            tokens = (count_tokens or estimate_tokens)(text)
            seen.append(Seen(sample, split, tokens, language(text), measured))
    _remark(seen)
    title, exact = next(iter(sources.values())).format.title, count_tokens is not None
    looked = resolution([s.sample for s in seen], lambda size: size, limit=16)
    return Inspection(data, title, seen, unusable, album.alike(), exact, reading.unused, looked)


Look = tuple[str, ImageStats, Fingerprint]
"""Key of an image, its measures, and what it looks like."""


def _ahead(samples: Iterable[Sample], workers: int) -> Iterator[tuple[Sample, list[Look]]]:
    """The samples with looks that other threads took; with none where there are no others."""
    if workers < 2:
        for sample in samples:
            yield sample, []
        return
    waiting: deque[Sample] = deque()
    sent: set[str] = set()

    def images() -> Iterator[list[Image]]:
        for sample in samples:
            waiting.append(sample)
            fresh = {_key(image): image for image in sample.all_images}
            yield [image for key, image in fresh.items() if key not in sent]
            sent.update(fresh)

    for looks in mapped(_looks, images(), workers):
        yield waiting.popleft(), looks


def _looks(images: list[Image]) -> list[Look]:
    """Of those that can be decoded."""
    found = []
    for image in images:
        with suppress(DataError):
            found.append(_look(image))
    return found


def _look(image: Image) -> Look:
    pixels = image.load()
    key = _key(image)
    name = image.source.name if isinstance(image.source, Path) else key[:12]
    return key, _measure(key, name, image, pixels), fingerprint(pixels)


def _key(image: Image) -> str:
    return str(image.source) if isinstance(image.source, Path) else image.digest()


class Album:
    """Images measured once, however many samples show them."""

    def __init__(self) -> None:
        self._known: dict[str, ImageStats] = {}
        self._near: NearImages[str] = NearImages()
        self._groups: dict[str, list[ImageStats]] = defaultdict(list)

    def stats(self, image: Image) -> ImageStats:
        """Raises DataError for one that cannot be decoded."""
        key = _key(image)
        if key not in self._known:
            self.add([_look(image)])
        return self._known[key]

    def add(self, looks: Iterable[Look]) -> None:
        for key, found, print_ in looks:
            self._known[key] = found
            first = self._near.find(print_)
            if first is None:
                self._near.add(print_, key)
            self._groups[first or key].append(found)

    def alike(self) -> list[list[ImageStats]]:
        """Different files that show the same, in groups."""
        return [group for group in self._groups.values() if len(group) > 1]


def _measure(key: str, name: str, image: Image, pixels: PIL.Image.Image) -> ImageStats:
    width, height = pixels.size
    remarks = []
    if min(width, height) < SMALL:
        remarks.append(f"smaller than {SMALL} pixels")
    if max(width, height) > LONG * min(width, height):
        remarks.append(f"more than {LONG:.0f} times as long as wide")
    small = pixels.resize((64, 64), reducing_gap=2.0).convert("L")
    if float(np.asarray(small, np.float32).std()) < FLAT:
        remarks.append("one colour only")
    kind = "pixels"
    if not isinstance(image.source, PIL.Image.Image):
        try:
            with open_image(image.encoded()) as raw:
                kind = raw.format or "?"
                remarks += _converted(raw)
        except (Unreadable, OSError) as error:  # gone since it was decoded
            raise DataError(f"{name}: not a readable image: {error}") from None
    return ImageStats(key, name, width, height, kind, tuple(remarks))


def _converted(raw: PIL.Image.Image) -> list[str]:
    """What core.image has to do about a file, in words."""
    remarks = []
    if getattr(raw, "n_frames", 1) > 1:
        remarks.append("several frames, the first is used")
    try:
        if raw.getexif().get(0x0112, 1) != 1:
            remarks.append("turned as its EXIF says")
    except Exception:  # a broken EXIF block, which decoding leaves alone too
        remarks.append("broken EXIF")
    if raw.mode in ("I", "F") or raw.mode.startswith("I;"):
        remarks.append("16 bits, scaled to 8")
    elif raw.mode == "CMYK":
        remarks.append("CMYK, converted")
    elif raw.has_transparency_data:
        remarks.append("transparent, put on white")
    return remarks


def _remark(seen: list[Seen]) -> None:
    """Remarks that need all samples: repeated ids, unusual lengths; and empty replies."""
    ids = Counter(s.sample.id for s in seen if s.sample.id)
    low, high = usual([s.tokens for s in seen])
    for one in seen:
        if ids[one.sample.id] > 1:
            one.remarks.append("id is not unique")
        if all(t.role != "assistant" for t in one.sample.turns):
            one.remarks.append("no reply")
        if any(t.role == "assistant" and not _says(t) for t in one.sample.turns):
            one.remarks.append("empty reply")
        if not low <= one.tokens <= high:
            one.remarks.append("unusual length of text")


def _says(turn) -> bool:
    return bool(turn.text.strip()) or any(isinstance(part, Image) for part in turn.content)


def usual(values: Iterable[int]) -> tuple[float, float]:
    """Bounds of what is usual: the quartiles of the logarithms and three times their distance
    beyond (Tukey's far-out fences, on a scale where lengths spread evenly)."""
    logs = np.log1p(np.asarray([*values] or [0], np.float64))
    q1, q3 = np.quantile(logs, [0.25, 0.75])
    room = 3 * max(q3 - q1, 0.35)
    return float(np.expm1(q1 - room)), float(np.expm1(q3 + room))
