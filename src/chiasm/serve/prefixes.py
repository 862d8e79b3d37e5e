"""Beginnings of prompts: a system prompt, an image or a conversation that comes again is not
computed again.

computed before   system | image | what colour?
asked now         system | image | is it red?
                  <- taken over -> | computed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from chiasm.core.batch import Encoded, shifted
from chiasm.nn.cache import KVCache
from chiasm.serve.recent import Recent

SHORTEST = 16
"""Tokens below which taking over gains nothing."""


@dataclass(frozen=True)
class Beginning:
    """A prompt whose keys and values are known."""

    prompt: Encoded
    cache: KVCache


class Prefixes:
    """Prompts computed lately, up to `budget` bytes of keys and values. is_image: which of some ids
    [n] are those of images, in which a prompt is not cut."""

    def __init__(self, budget: float, is_image: Callable[[np.ndarray], np.ndarray]):
        self.is_image = is_image
        self.held: Recent[int, Beginning] = Recent(budget, lambda one: one.cache.nbytes)
        self._names = count()

    def split(self, prompt: Encoded) -> tuple[Encoded, KVCache | None]:
        """What is left to compute of a prompt, at least its last token, and a cache of what stands
        before it, or None. To be used up: it is the caller's."""
        if not _causal(prompt):
            return prompt, None
        most, name = 0, None
        for each in list(self.held):  # looked at in their order, which stays the order of use
            length = self._common(self.held[each].prompt, prompt)
            if length > most:
                most, name = length, each
        if name is None or most < SHORTEST:
            return prompt, None
        known = self.held[name]
        return self._rest(known.prompt, prompt, most), known.cache.fork(most)

    def keep(self, prompt: Encoded, cache: KVCache) -> None:
        """Remember a prompt that a cache of one row holds, in the place of those it begins with."""
        if cache.beside is not None or not _causal(prompt):
            return
        for name in list(self.held):
            known = self.held[name].prompt
            if self._common(known, prompt) == min(len(known), len(prompt) - 1):
                del self.held[name]
        self.held[next(self._names)] = Beginning(prompt, cache.fork(len(prompt)))

    def _common(self, known: Encoded, prompt: Encoded) -> int:
        """Tokens that both begin with, at a place where a prompt may be cut: with all images of
        the known one, or with none."""
        most = min(len(known), len(prompt) - 1)
        same = known.input_ids[:most] == prompt.input_ids[:most]
        length = most if same.all() else int(same.argmin())
        places = np.flatnonzero(self.is_image(known.input_ids))
        if not len(places):
            return length
        if length <= places[-1] or self.is_image(prompt.input_ids[length : length + 1])[0]:
            return min(length, int(places[0]))
        return length if _same_images(known, prompt) else min(length, int(places[0]))

    def _rest(self, known: Encoded, prompt: Encoded, start: int) -> Encoded:
        seen = known if self.is_image(prompt.input_ids[:start]).any() else None
        columns = ("input_ids", "labels", "block_ids", "branch_ids", "position_ids")
        place = _beyond(prompt.place, None if seen is None else seen.place)
        return replace(
            prompt,
            **{name: getattr(prompt, name)[start:] for name in columns},
            image_patches=_beyond(
                prompt.image_patches, None if seen is None else seen.image_patches
            ),
            image_grids=_beyond(prompt.image_grids, None if seen is None else seen.image_grids),
            place=None if place is None else shifted(place, -start),
        )


def _causal(prompt: Encoded) -> bool:
    """Whether no token sees a later one, nor is hidden from one."""
    return bool((np.diff(prompt.block_ids) > 0).all()) and not prompt.branch_ids.any()


def _same_images(known: Encoded, prompt: Encoded) -> bool:
    """Whether a prompt's first images are those of the known one."""
    for name in ("image_patches", "image_grids"):
        theirs, own = getattr(known, name), getattr(prompt, name)
        if theirs is None:
            continue
        if own is None or not np.array_equal(theirs, own[: len(theirs)]):
            return False
    return True


def _beyond(rows: np.ndarray | None, known: np.ndarray | None) -> np.ndarray | None:
    """The rows after as many as are known; None if there are none."""
    left = rows if rows is None or known is None else rows[len(known) :]
    return left if left is not None and len(left) else None
