"""Which images look alike, whatever their size and compression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import PIL.Image

EDGE, LOW = 64, 16  # pixels the image is shrunk to; frequencies kept a side
BANDS = 16  # of 16 bits each: prints that differ in fewer than 16 bits share one of them
MOST_BITS, MOST_COLOUR = 24, 12.0
FINE, MOST_FINE = 32, 25.0  # cells a side of the finer look; grey levels
SHRINK = PIL.Image.Resampling.LANCZOS
"""Not BOX, whose cells change with where they fall on the pixels: of tables halved in size it found
24 in 100, of photographs 61."""

K = TypeVar("K", bound=Hashable)

_COSINES = np.cos(
    np.pi * (2 * np.arange(EDGE)[None] + 1) * np.arange(LOW + 1)[:, None] / (2 * EDGE)
)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """bits [16] uint16: signs of the 256 lowest frequencies against their median (pHash, Zauner
    2010, with four times the bits: text pages differ in little else than detail).
    colour [48] float32: the image shrunk to 4 x 4, which the grey bits do not see.
    fine [1024] int16: grey of 32 x 32 cells, which tells tables of other numbers apart. Of 200
    images of tables-qa, JPEG of quality 30 changes a cell by at most 10 levels, scaling by 0.5 to
    1.5 with quality 75 by 21, and 22 bits; another table differs by 29 and 20 at least."""

    bits: np.ndarray
    colour: np.ndarray
    fine: np.ndarray

    def near(self, other: Fingerprint) -> bool:
        """The same image to the eye."""
        different = int(np.bitwise_count(self.bits ^ other.bits).sum())
        return (
            different <= MOST_BITS
            and _apart(self.colour, other.colour) <= MOST_COLOUR
            and _apart(self.fine, other.fine) <= MOST_FINE
        )


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def fingerprint(image: PIL.Image.Image) -> Fingerprint:
    small = image.convert("L").resize((EDGE, EDGE), SHRINK)
    fine = np.asarray(small.resize((FINE, FINE), SHRINK), np.int16).reshape(-1)
    low = (_COSINES @ np.asarray(small, np.float64) @ _COSINES.T)[1:, 1:]
    # Noise of compression must not decide where there is nothing: such frequencies count as off.
    on = (low > np.median(low)) & (np.abs(low) > EDGE)
    colour = image.convert("RGB").resize((4, 4), PIL.Image.Resampling.BOX)
    bits = np.packbits(on.reshape(-1)).view(np.uint16)
    return Fingerprint(bits, np.asarray(colour, np.float32).reshape(-1), fine)


class NearImages(Generic[K]):
    """Fingerprints by which a near one is found without comparing with all."""

    def __init__(self) -> None:
        self._bands: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
        self._prints: list[tuple[Fingerprint, K]] = []

    def find(self, print_: Fingerprint) -> K | None:
        """The key of the first near image added, or None."""
        seen: set[int] = set()
        for band, part in zip(self._bands, print_.bits.tolist(), strict=True):
            for i in band.get(part, ()):
                if i not in seen and self._prints[i][0].near(print_):
                    return self._prints[i][1]
                seen.add(i)
        return None

    def add(self, print_: Fingerprint, key: K) -> None:
        for band, part in zip(self._bands, print_.bits.tolist(), strict=True):
            band[part].append(len(self._prints))
        self._prints.append((print_, key))
