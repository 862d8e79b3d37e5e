"""Frames of a video file, with the times at which they are shown."""

from __future__ import annotations

import importlib.util
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.vision.config import VideoConfig

TOLERANCE = 0.1
"""How much earlier than their header says, as a share, the frames of a file may end."""


@dataclass(frozen=True)
class Footage:
    """Chosen frames: RGB pictures and their times in seconds from the first of the file; seconds
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


def read_footage(path: Path, config: VideoConfig, where: str = "") -> Footage:
    """The frames that config chooses, exactly those: the file is indexed by its packets, then
    decoded from the keyframe before each chosen frame. Headers are not believed, only compared.

    Raises DataError, with the place and the remedy, for a file that is missing, empty, truncated,
    no video, or shorter than its header says; MissingExtraError without PyAV.
    """
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", "video", f"Reading {path.name}")
    with _told(path, where):
        import av

        if path.stat().st_size == 0:
            raise _Unusable("an empty file (0 bytes)")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _Unusable("no picture in it, only sound")
            index = _indexed(container)
            unit = float(container.streams.video[0].time_base)
            first = index.times[0]
            seconds = (index.end - first) * unit
            _compare(container, seconds)
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
    if config.policy == "keyframes":
        moments = list(keys)
    else:
        count = config.frames
        if config.policy == "fps":
            count = min(count, max(1, int(seconds * config.fps + 1e-6)))
        moments = [seconds * (i + 0.5) / count for i in range(count)]
        if config.policy == "fps" and count == max(1, int(seconds * config.fps + 1e-6)):
            moments = [i / config.fps for i in range(count)]
    shown = sorted({max(0, bisect_right(times, moment + 1e-6) - 1) for moment in moments})
    if len(shown) <= config.frames:
        return shown
    return [shown[(2 * i + 1) * len(shown) // (2 * config.frames)] for i in range(config.frames)]


class _Unusable(Exception):
    """What is wrong with a file, in words."""


@contextmanager
def _told(path: Path, where: str) -> Iterator[None]:
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
    except _Unusable as error:
        raise DataError(f"{path}: {error}{place}; replace the file or remove the sample") from None
    except Exception as error:  # FFmpeg's errors are of many classes
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{path}: not a readable video: {said}{place}; replace the file or remove the sample"
        ) from None


def _indexed(container: Any) -> _Index:
    """Every packet of the pictures, read but not decoded."""
    times, keys, end = [], [], 0
    for packet in container.demux(container.streams.video[0]):
        if packet.pts is None or packet.is_discard:
            continue
        times.append(packet.pts)
        end = max(end, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not times:
        raise _Unusable("a header without any frame")
    return _Index(sorted(times), sorted(keys), end)


def _compare(container: Any, seconds: float) -> None:
    """Frames must last about as long as the header says: else the file is cut off, or lies."""
    stream = container.streams.video[0]
    said = stream.duration * float(stream.time_base) if stream.duration else 0.0
    if not said and len(container.streams) == 1 and container.duration:
        said = container.duration / 1e6
    if seconds < said * (1 - TOLERANCE) - 1:
        raise _Unusable(
            f"its header says {said:.1f} seconds but its frames end after {seconds:.1f}, "
            "so it is truncated or its header is wrong"
        )


def _decoded(
    container: Any, wanted: Sequence[int], keys: Sequence[int]
) -> Iterator[PIL.Image.Image]:
    """The pictures shown at these times (rising). Seeks where a keyframe lies on the way."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames, at = iter(()), None
    for time in wanted:
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else time
        if at is None or at < key:
            container.seek(key, stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            at = frame.pts
            if at is not None and at >= time:
                break
        else:
            raise _Unusable("the file ends before its last frame, so it is truncated")
        if at != time:
            raise _Unusable("a frame cannot be decoded, so the file is damaged")
        picture = frame.to_image()
        yield picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
