"""Videos with their captions: x.mp4 beside x.txt, x.srt or x.vtt (PyAV, extra `video`).

A text file describes the whole clip; every cue of a subtitle file describes its own seconds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image

from chiasm.core.errors import ConfigError, DataError, MissingExtraError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Image, Sample, Video, assistant, user
from chiasm.data.ingest.collect import Collected, Skip, Source, collect, files_in

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
CUE = re.compile(r"(?:(\d+):)?(\d+):(\d+)[.,](\d+)\s*-->\s*(?:(\d+):)?(\d+):(\d+)[.,](\d+)")


@dataclass(frozen=True)
class Caption:
    """Text of a span of seconds; until None: to the end."""

    text: str
    start: float = 0.0
    until: float | None = None


@dataclass(frozen=True)
class VideoOptions:
    """frames: images of a span; 0 keeps the clip itself as a video part. side: the longer side
    of a frame is at most so many pixels."""

    frames: int = 4
    side: int = 512


def ingest_video(folder: Path, out: Path, options: VideoOptions, show: Show = Bar) -> Collected:
    """Every captioned video below a folder. Raises DataError, ConfigError, MissingExtraError."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise MissingExtraError("av", "video", "Reading videos") from None
    if options.frames < 0 or options.side < 16:
        raise ConfigError(
            f"--frames {options.frames} --side {options.side}: expected at least 0 and 16"
        )
    found = Collected()
    sources = files_in(folder, SUFFIXES, found.skipped.__setitem__)
    return collect(sources, partial(read_video, options=options), out, found, show)


def read_video(source: Source, skip: Skip, options: VideoOptions) -> Iterator[Sample]:
    """One sample for every caption."""
    assert source.path is not None
    captions = read_captions(source.path)
    for number, caption in enumerate(captions):
        where = f"{source.name} caption {number + 1}"
        try:
            frames = sample_frames(source.path, caption, max(1, options.frames), options.side)
        except DataError as error:
            if len(captions) == 1:
                raise
            skip(where, str(error))
            continue
        meta = {
            "file": source.name,
            "caption": caption.text,
            "seconds": [caption.start, caption.until],
            "frame_seconds": [round(second, 3) for second, _ in frames],
        }
        if options.frames == 0:
            if caption.start > 0 or caption.until is not None:
                skip(where, "a cue of some seconds needs --frames of 1 or more")
                continue
            asked = user(Video(source.path, where), "Describe the video.")
        else:
            images = [Image(_jpeg(image), where) for _, image in frames]
            what = f"These are {len(images)} frames" if len(images) > 1 else "This is a frame"
            asked = user(*images, f"{what} of a video. Describe the video.")
        turns = (asked, assistant(caption.text))
        yield Sample(turns, f"{source.name}#{number}", "video", meta=meta)


def read_captions(video: Path) -> list[Caption]:
    """The captions beside a video. Raises DataError where there are none."""
    for suffix in (".txt", ".srt", ".vtt"):
        file = video.with_suffix(suffix)
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"{file.name}: not UTF-8; save it as UTF-8") from None
        captions = [Caption(text)] if suffix == ".txt" and text else parse_cues(text)
        if not captions:
            raise DataError(f"{file.name}: holds no caption; write one or remove the video")
        return captions
    raise DataError(f"no caption beside it; add {video.stem}.txt, .srt or .vtt")


def parse_cues(text: str) -> list[Caption]:
    """The cues of SubRip or WebVTT text, in order, without their markup."""
    captions = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        for n, line in enumerate(lines):
            if found := CUE.search(line):
                times = [int(x or 0) for x in found.groups()]
                fractions = [int(found[i]) / 10 ** len(found[i]) for i in (4, 8)]
                start = times[0] * 3600 + times[1] * 60 + times[2] + fractions[0]
                until = times[4] * 3600 + times[5] * 60 + times[6] + fractions[1]
                said = " ".join(re.sub(r"<[^>]*>", "", " ".join(lines[n + 1 :])).split())
                if said and until > start:
                    captions.append(Caption(said, start, until))
                break
    return captions


def sample_frames(
    path: Path, caption: Caption, count: int, side: int
) -> list[tuple[float, PIL.Image.Image]]:
    """The frames in the middles of `count` equal parts of a caption's span, each with its second;
    fewer where the span has fewer. Raises DataError for what cannot be decoded."""
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise DataError("holds no video stream")
            stream = container.streams.video[0]
            length = container.duration / av.time_base if container.duration else 0.0
            until = min(caption.until or length, length)
            if until <= caption.start:
                raise DataError(f"is {length:.1f} s long, the caption begins at {caption.start} s")
            part = (until - caption.start) / count
            wanted = [caption.start + (n + 0.5) * part for n in range(count)]
            return _decode(container, stream, wanted, side)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"not a readable video: {error}; repair or remove it") from None


def _decode(container, stream, wanted: Sequence[float], side: int):
    """The first frame at or after each wanted second, none twice."""
    origin = float((stream.start_time or 0) * stream.time_base)
    container.seek(int((wanted[0] + origin) / stream.time_base), stream=stream)
    frames: list[tuple[float, PIL.Image.Image]] = []
    rest, last = list(wanted), None
    for frame in container.decode(stream):
        if frame.time is None:
            continue
        last = frame
        if frame.time - origin >= rest[0]:
            frames.append((frame.time - origin, _image(frame, side)))
            while rest and rest[0] <= frame.time - origin:
                rest.pop(0)
            if not rest:
                break
    if not frames and last is not None:  # the wanted second lies in the last frame
        frames.append((last.time - origin, _image(last, side)))
    if not frames:
        raise DataError("holds no frame that can be decoded; repair or remove it")
    return frames


def _image(frame, side: int) -> PIL.Image.Image:
    image = frame.to_image()
    image.thumbnail((side, side))
    return image


def _jpeg(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
