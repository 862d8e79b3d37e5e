"""Videos in a conversation: each becomes its times and its frames.

    "what happens?" <video>   ->   "what happens?" <0.5 seconds> [frame] <1.5 seconds> [frame] ...

Where the frames would take more tokens than config.max_tokens, as many neighbours as needed are
averaged, token by token, into the tokens of one image; codes have no average, there the first of
them stands for its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from chiasm.core.batch import Slot
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import ImageCodec
from chiasm.core.sample import Image, Part, Sample, Text, Video
from chiasm.data.video import Footage, read_footage
from chiasm.vision.config import VideoConfig


@dataclass(frozen=True, eq=False)
class Frames(Image):
    """Neighbouring frames of a clip that are averaged into one image; source is the first."""

    frames: tuple[PIL.Image.Image, ...] = ()

    def digest(self) -> str:
        images = b"".join(frame.tobytes() for frame in self.frames)
        return hashlib.sha256(f"{self.frames[0].size}".encode() + images).hexdigest()


class Clips:
    """How videos are seen. codec: of single frames, all of a clip in as many tokens."""

    def __init__(self, config: VideoConfig, codec: ImageCodec):
        if config.frames < 1 or config.fps <= 0 or config.max_tokens < 1:
            raise ConfigError("model.video: frames, fps and max_tokens must be positive")
        self.config, self.codec = config, codec

    def unroll(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with each video as times and images; a file is read once."""
        read: dict[Video, tuple[Part, ...]] = {}

        def parts(part: Part) -> tuple[Part, ...]:
            if not isinstance(part, Video):
                return (part,)
            if part not in read:
                read[part] = self.parts(part)
            return read[part]

        return [
            sample.replace(
                turns=tuple(
                    replace(turn, content=tuple(p for part in turn.content for p in parts(part)))
                    for turn in sample.turns
                )
            )
            if sample.videos
            else sample
            for sample in samples
        ]

    def parts(self, video: Video) -> tuple[Part, ...]:
        """Times and images of one video. Raises DataError for a file that cannot be read."""
        return self.shown(read_footage(video.path, self.config, video.where), video.where)

    def shown(self, footage: Footage, where: str = "") -> tuple[Part, ...]:
        """Times and images of frames that were read."""
        group = self._group(footage.frames)
        parts: list[Part] = []
        for start in range(0, len(footage.frames), group):
            frames = tuple(footage.frames[start : start + group])
            times = footage.times[start : start + group]
            if self.config.timestamps:
                parts.append(Text(f"<{sum(times) / len(times):.1f} seconds>"))
            parts.append(Frames(frames[0], where, frames))
        return tuple(parts)

    def slot(self, image: Frames) -> Slot:
        """The frames' visual tokens, averaged over time; codes are those of the first."""
        averaged = not self.codec.codes_per_image
        slots = self.codec.encode(image.frames if averaged else image.frames[:1])
        first = slots[0]
        if len(slots) == 1:
            return first
        assert all(slot.grid == first.grid for slot in slots)
        patches = [slot.image_patches for slot in slots if slot.image_patches is not None]
        places = [slot.place for slot in slots if slot.place is not None]
        return replace(
            first,
            image_patches=np.concatenate(patches),
            place=np.concatenate(places),
            tiles=sum(slot.tiles for slot in slots),
        )

    def _group(self, frames: Sequence[PIL.Image.Image]) -> int:
        """How many neighbours share an image's tokens."""
        each = len(self.codec.encode(frames[:1])[0].input_ids)
        images = self.config.max_tokens // each
        if not images:
            raise ConfigError(
                f"model.video.max_tokens: {self.config.max_tokens}, but one frame takes {each}; "
                "raise it"
            )
        return -(-len(frames) // images)
