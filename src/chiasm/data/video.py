"""Frames of a video file, with the times at which they are shown."""

from __future__ import annotations

import importlib.util
import io
import math
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.vision.config import VideoConfig

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""What bytes from others may be, by FFmpeg's names."""

MOST_STRETCH = 16
"""How many times as wide as high pixels may be, or the other way round."""

SHARE, SLACK = 0.1, 0.5
"""How much earlier than their header says, as a share and seconds more, frames may end."""


@dataclass(frozen=True)
class Footage:
    """Chosen frames: RGB images and their times in seconds from the first of the file; seconds
    is how long the file lasts."""

    frames: list[PIL.Image.Image]
    times: list[float]
    seconds: float


@dataclass(frozen=True)
class _Index:
    """Presentation times of all frames, in the stream's units and in order; which of them are
    keyframes; where the last one ends."""

    times: list[int]
    keys: list[int]
    end: int


def read_footage(
    source: Path | bytes, config: VideoConfig, where: str = "", most: float = math.inf
) -> Footage:
    """The frames that config chooses, exactly those: the file is indexed by its packets, then
    decoded from the keyframe before each chosen frame. Headers are not believed, only compared.

    source: a file, or the bytes of one, which then must be of a common container. most: pixels of
    all its frames together, counted before any is decoded. Raises DataError, with the place and
    the remedy, for a file that is missing, empty, truncated, no video, larger than that, or
    shorter than its header says; MissingExtraError without PyAV.
    """
    name = source if isinstance(source, Path) else "embedded video"
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", "video", f"Reading {getattr(name, 'name', name)}")
    with _told(name, where):
        import av

        if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
            raise _BadFileError("an empty file (0 bytes)")
        opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
        # Playlists, which such bytes could be as well, make FFmpeg open what they name.
        safe = {} if isinstance(source, Path) else {"format_whitelist": CONTAINERS}
        with av.open(opened, options=safe) as container:
            if not container.streams.video:
                sound = "only sound" if container.streams.audio else "or it is truncated"
                raise _BadFileError(f"no images in it, {sound}")
            index = _indexed(container)
            _count(len(index.times), container.streams.video[0], most)
            unit = container.streams.video[0].time_base
            if unit is None:
                raise _BadFileError("its frames have no times")
            unit = float(unit)
            first = index.times[0]
            seconds = (index.end - first) * unit
            chosen = choose(
                [(t - first) * unit for t in index.times],
                [(t - first) * unit for t in index.keys],
                seconds,
                config,
            )
            wanted = [index.times[i] for i in chosen]
            frames = list(_decoded(container, wanted, index.keys))
        return Footage(frames, [(t - first) * unit for t in wanted], seconds)


def choose(
    times: Sequence[float], keys: Sequence[float], seconds: float, config: VideoConfig
) -> list[int]:
    """Which frames, shown at `times` (rising, from 0) in a clip of so many seconds, are seen."""
    each = math.ceil(seconds * config.fps - 1e-6)
    if config.policy == "keyframes":
        moments = list(keys)
    elif config.policy == "fps" and each <= config.frames:
        moments = [i / config.fps for i in range(max(1, each))]
    else:
        moments = [seconds * (i + 0.5) / config.frames for i in range(config.frames)]
    shown = sorted({max(0, bisect_right(times, moment + 1e-6) - 1) for moment in moments})
    if len(shown) <= config.frames:
        return shown
    return [shown[(2 * i + 1) * len(shown) // (2 * config.frames)] for i in range(config.frames)]


class _BadFileError(Exception):
    """What is wrong with a file, in words."""


@contextmanager
def _told(path: Path | str, where: str) -> Iterator[None]:
    """Whatever goes wrong inside as one DataError that names the file and the place."""
    place = f" ({where})" if where else ""
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such video{place}; correct the path or remove the sample"
        ) from None
    except (MissingExtraError, DataError):
        raise
    except _BadFileError as error:
        raise DataError(f"{path}: {error}{place}; replace the file or remove the sample") from None
    except Exception as error:  # FFmpeg's errors are of many classes
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{path}: not a readable video: {said}{place}; replace the file or remove the sample"
        ) from None


def _indexed(container: Any) -> _Index:
    """From every packet, read but not decoded. Raises _BadFileError where they do not last as long
    as the header says: the file is cut off, or lies."""
    stream = container.streams.video[0]
    times, keys, end, longest = [], [], 0, 0.0
    for packet in container.demux():
        if packet.pts is None or packet.is_discard:
            continue
        finish = packet.pts + (packet.duration or 0)
        longest = max(longest, float(finish * packet.time_base))
        if packet.stream is stream:
            times.append(packet.pts)
            end = max(end, finish)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not times:
        raise _BadFileError("a header without any frame")
    _compare(stream.duration, stream.time_base, end * stream.time_base)
    _compare(container.duration, 1e-6, longest)
    return _Index(sorted(times), sorted(keys), end)


def _count(frames: int, stream: Any, most: float) -> None:
    width, height = _shown_size(stream)
    if frames * width * height > most:
        raise _BadFileError(
            f"{frames} frames of {width}x{height} have more than the {most:,.0f} "
            "pixels allowed; send a shorter or smaller clip"
        )


def _shown_size(stream: Any) -> tuple[int, int]:
    """Width and height of a frame with square pixels, before it is turned. Raises
    _BadFileError for pixels of a shape that no camera has."""
    ratio = stream.sample_aspect_ratio or 1  # 0 and None: not stated
    if not 1 / MOST_STRETCH <= ratio <= MOST_STRETCH:
        raise _BadFileError(
            f"its pixels are {ratio} times as wide as high by its header, expected at most "
            f"{MOST_STRETCH} to 1"
        )
    return max(1, round(stream.width * ratio)), stream.height


def _compare(said: int | None, unit: Any, seen: Any) -> None:
    """seen: seconds; said: the same by the header, in units (None: it does not say)."""
    seconds = float((said or 0) * unit)
    if seen < seconds * (1 - SHARE) - SLACK:
        raise _BadFileError(
            f"its header says {seconds:.1f} seconds but its frames end after {float(seen):.1f}, "
            "so it is truncated or its header is wrong"
        )


def _decoded(
    container: Any, wanted: Sequence[int], keys: Sequence[int]
) -> Iterator[PIL.Image.Image]:
    """The images shown at these times (rising). Seeks where a keyframe lies on the way."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames, at = iter(()), None
    for time in wanted:
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else time
        frame = None
        if at is not None and at >= key:
            frame = _until(frames, time)
        if frame is None or frame.pts != time:
            container.seek(key, stream=stream)
            frames = container.decode(stream)
            frame = _until(frames, time)
        if frame is None or frame.pts != time:
            raise _BadFileError(
                "a frame that its index promises is not in it: truncated or damaged"
            )
        at = time
        yield _displayed(frame, _shown_size(stream))


def _displayed(frame: Any, size: tuple[int, int]) -> PIL.Image.Image:
    """A frame as players show it: at `size`, then turned and mirrored by its display matrix."""
    image: PIL.Image.Image = frame.to_image()
    if image.size != size:
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    stated = frame.side_data.get("DISPLAYMATRIX")
    if stated is None:
        return image
    # A point (p, q), q downwards, is shown at (a·p + c·q, b·p + d·q) (libavutil/display.h).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(stated)[:36])
    if a * d == b * c:
        return image  # shows a line or nothing; players ignore it
    if a * d < b * c:  # mirrored, by which only the first column changes its sign
        image, a, b = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), -a, -b
    clockwise = math.degrees(math.atan2(b, a))
    quarters = round(clockwise / 90) * 90
    near = abs(clockwise - quarters) < 0.01  # fixed-point rounding
    return image.rotate(-(quarters if near else clockwise), expand=True)


def _until(frames: Iterator[Any], time: int) -> Any | None:
    """The first frame that is shown no earlier."""
    return next((f for f in frames if f.pts is not None and f.pts >= time), None)
