"""Samples that give away a test set: its images, or long runs of its words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Sample
from chiasm.data.filters.rule import words_of
from chiasm.data.fingerprint import NearImages, fingerprint
from chiasm.data.load import load_samples


@dataclass
class Contamination:
    """test: the data set whose test half must stay unseen; n: words in a row that must not be
    shared (13 is GPT-3's, 2005.14165, appendix C). Shorter texts are judged by the images alone:
    "What is the total?" is asked everywhere."""

    test: str = ""
    n: int = 13
    samples: tuple[Sample, ...] = ()
    _near: NearImages[str] = field(default_factory=NearImages, init=False, repr=False)
    _grams: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.test and not self.samples:
            raise ConfigError("contamination: needs a test set; write contamination:test=PATH")
        for sample in self.samples or load_samples(self.test, "test"):
            name = sample.name
            for gram in self._runs(sample):
                self._grams.setdefault(gram, name)
            for image in sample.images:
                self._near.add(fingerprint(image.load()), name)

    def reason(self, sample: Sample) -> str | None:
        for gram in self._runs(sample):
            if gram in self._grams:
                return f"shares {self.n} words in a row with the test sample {self._grams[gram]}"
        for image in sample.images:
            name = self._near.find(fingerprint(image.load()))
            if name is not None:
                return f"shows the image of the test sample {name}"
        return None

    def _runs(self, sample: Sample) -> list[int]:
        words = re.findall(r"\w+", words_of(sample).lower())
        return [hash(tuple(words[i : i + self.n])) for i in range(len(words) - self.n + 1)]
