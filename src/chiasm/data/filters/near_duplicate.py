"""Nearly the same words about images that look alike, as an earlier sample's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from chiasm.core.sample import Sample
from chiasm.data.filters.rule import words_of
from chiasm.data.fingerprint import NearImages, fingerprint


@dataclass
class NearDuplicate:
    """least: Jaccard similarity of the words from which two texts count as the same.

    Candidates share the first image to the eye; samples without images are compared only when
    their words are the same but for case, order and punctuation.
    """

    least: float = 0.8
    _near: NearImages[str] = field(default_factory=NearImages, init=False, repr=False)
    _kept: dict[str, list[tuple[str, int, frozenset[str]]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def reason(self, sample: Sample) -> str | None:
        words = frozenset(re.findall(r"\w+", words_of(sample).lower()))
        images = sample.images
        if images:
            print_ = fingerprint(images[0].load())
            key = self._near.find(print_)
            if key is None:
                key = f"image {len(self._kept)}"
                self._near.add(print_, key)
        else:
            key = "words " + " ".join(sorted(words))
        others = self._kept.setdefault(key, [])
        for name, count, said in others:
            same = len(words & said) / (len(words | said) or 1) if words | said else 1.0
            if count == len(images) and same >= self.least:
                return f"nearly the same as {name}"
        others.append((sample.name, len(images), words))
        return None
