"""What a stage makes of a sample: the conversation itself, its caption, a request to draw it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from chiasm.core.errors import ConfigError
from chiasm.core.registry import REFERENCE, Registry, nearest
from chiasm.core.sample import Image, Message, Sample, Text, assistant, user
from chiasm.data.augment import augment, mirrorable, mirrored, movable
from chiasm.data.balance import Weight
from chiasm.data.caption import caption_of

View = Callable[[Sample, np.random.Generator], Sample | None]


class Objective:
    """Base of objectives of your own: what a stage makes of a sample. Made once a run of the
    training samples; a stage uses it as `data="module:Class"`, also with others ("chat+...").
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample | None:
        """What is learnt of the sample, None where there is nothing. Called by several threads:
        chance comes from `random` alone, and the sample is not changed."""
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective", Objective, classes=True)
"""Objectives beside those that every recipe has (Context.objectives)."""


def own_objectives(names: Iterable[str], samples: Sequence[Sample]) -> dict[str, View]:
    """Those of the user's own in a stage's `objectives`, by name. Raises ConfigError for one that
    is not there or not allowed (core/registry.py)."""
    parts = {part for name in names for part in name.split("+")}
    own = sorted(part for part in parts if part in OBJECTIVES or REFERENCE.fullmatch(part))
    return {name: OBJECTIVES.find(name)(samples) for name in own}


def chat(sample: Sample, random: np.random.Generator) -> Sample | None:
    """The sample as it is."""
    return sample


def caption(sample: Sample, random: np.random.Generator) -> Sample | None:
    """Image in, caption out; None for a sample without either."""
    caption = caption_of(sample)
    if not caption or not sample.images:
        return None
    turns = (user(sample.images[0]), assistant(caption))
    return replace(sample, turns=turns, independent=False)


def text_to_image(sample: Sample, random: np.random.Generator, drop: float = 0.0) -> Sample | None:
    """Caption in, image out; with probability `drop` the caption is left out, which trains the
    unconditional side of classifier-free guidance (Ho & Salimans, 2207.12598)."""
    caption = caption_of(sample)
    if not caption or not sample.images:
        return None
    asked = Message("user", ()) if random.random() < drop else user(caption)
    return replace(sample, turns=(asked, assistant(sample.images[0])), independent=False)


ASKED = ("is this {}?", "is there {}?", "does the image show {}?")


def itm(captions: Sequence[str], hard: bool = False, pairs: int = 6) -> View:
    """Does this text describe the image? Asked `pairs` times of its own caption and of another's,
    answered yes or no (image-text matching: ALBEF, 2107.07651, section 3.2). All are branches of
    the one image, which costs more than any of them.

    hard: every other stranger is the one of eight that shares the rarest words with the image's
    own caption (hard negatives, the same section): told apart from those, an image must be known
    in all its parts. A model that cannot compare at all yet learns it sooner without (LOG.md)."""
    common = Counter(word for caption in captions for word in set(caption.split()))

    def alike(one: str, other: str) -> float:
        return sum(1.0 / common[word] for word in set(one.split()) & set(other.split()))

    def stranger(own: str, alike_one: bool, random: np.random.Generator) -> str:
        places = random.integers(0, len(captions), 8 if alike_one else 1).tolist()
        drawn = [captions[int(i)] for i in places]
        return max(drawn, key=lambda other: (other != own, alike(own, other)))

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        own = caption_of(sample)
        if not own or not sample.images:
            return None
        others = [stranger(own, hard and number % 2 == 1, random) for number in range(pairs)]
        return _asked(sample, [*[own] * pairs, *(c for c in others if c != own)], {own}, random)

    return apply


def word_match(captions: Sequence[str], pairs: int = 6) -> View:
    """Is this word true of the image? Asked `pairs` times of a word of its own caption and of a
    word of another's, of those that not most captions have. With whole captions a model can settle
    for a part of them, and go on no further for long (LOG.md)."""
    common = Counter(word for caption in captions for word in set(caption.split()))
    telling = {word for word, count in common.items() if count <= len(captions) / 2}

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        own = [word for word in (caption_of(sample) or "").split() if word in telling]
        if not own or not sample.images:
            return None
        asked = [own[random.integers(len(own))] for _ in range(pairs)]
        for number in random.integers(0, len(captions), pairs):
            rest = [w for w in captions[int(number)].split() if w in telling and w not in own]
            if rest:
                asked.append(rest[random.integers(len(rest))])
        return _asked(sample, asked, set(own), random)

    return apply


def _asked(
    sample: Sample, texts: Sequence[str], true: set[str], random: np.random.Generator
) -> Sample:
    """Branches that ask of each text whether it is true of the image."""
    turns: list[Message] = []
    for text in texts:
        image = () if turns else sample.images[:1]
        phrase = ASKED[random.integers(len(ASKED))]
        turns.append(user(*image, phrase.format(text)))
        turns.append(assistant("yes" if text in true else "no"))
    return replace(sample, turns=tuple(turns), independent=True)


CHANGES = ("make it {}", "draw it {}", "the same in {}")


class Pairs:
    """Images that are alike but for one attribute: meta[kept] equal, meta[changed] another."""

    def __init__(self, samples: Sequence[Sample], kept: str = "shape", changed: str = "color"):
        self.kept, self.changed = kept, changed
        self._alike: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        for sample in samples:
            own = self._both(sample)
            if own is not None and sample.images:
                self._alike[own[0]][own[1]].append(sample)

    def other(self, sample: Sample, random: np.random.Generator) -> tuple[Image, str] | None:
        """An image like the sample's and the value in which it differs, each value as likely;
        None where there is none."""
        own = self._both(sample)
        if own is None or not sample.images:
            return None
        known = self._alike.get(own[0], {})
        values = sorted(value for value in known if value != own[1])
        if not values:
            return None
        value = values[random.integers(len(values))]
        found = known[value][random.integers(len(known[value]))]
        return found.images[0], value

    def _both(self, sample: Sample) -> tuple[str, str] | None:
        kept, changed = (sample.meta.get(name) for name in (self.kept, self.changed))
        words = isinstance(kept, str) and isinstance(changed, str)
        return (kept, changed) if words else None  # type: ignore[return-value]


def edit(pairs: Pairs, drop: float = 0.0) -> View:
    """An image and words in, the changed image out: "make it blue". Pairs are different
    images, so the size and place of what is drawn are the model's to choose. drop: as
    text_to_image's, of image and words together."""

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        found = pairs.other(sample, random)
        if found is None:
            return None
        changed, value = found
        words = CHANGES[random.integers(len(CHANGES))].format(value)
        asked = user(sample.images[0], words)
        if random.random() < drop:
            asked = Message("user", ())
        return replace(sample, turns=(asked, assistant(changed)), independent=False)

    return apply


DRAW_SAY_REDRAW = "draw {}, then say what you drew, then draw it {}"
DOCUMENTS = (DRAW_SAY_REDRAW, "draw {}, then say what you drew", "say what it is, then draw it {}")


def interleaved(pairs: Pairs, drop: float = 0.0) -> View:
    """One request for several things in order, one reply that mixes text and images: a third
    each of DOCUMENTS, the last with an image to look at. drop: as text_to_image's."""

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        if sample.meta.get("interleaved"):  # a document as it was published
            return sample
        caption, found = caption_of(sample), pairs.other(sample, random)
        if not caption or found is None:
            return None
        (changed, value), own = found, sample.images[0]
        asked, reply = (
            (user(DOCUMENTS[0].format(caption, value)), assistant(own, caption, changed)),
            (user(DOCUMENTS[1].format(caption)), assistant(own, caption)),
            (user(own, DOCUMENTS[2].format(value)), assistant(caption, changed)),
        )[random.integers(len(DOCUMENTS))]
        if random.random() < drop:
            asked = Message("user", ())
        return replace(sample, turns=(asked, reply), independent=False)

    return apply


def without(view: View, captions: Sequence[str]) -> View:
    """The view of all samples but those with these captions."""

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        return None if caption_of(sample) in captions else view(sample, random)

    return apply


def with_caption(view: View) -> View:
    """The view with one more branch: nothing asked, answered by the sample's own caption."""

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        seen = view(sample, random)
        caption = sample.meta.get("caption")
        if seen is None or not seen.independent or not caption:
            return seen
        return replace(seen, turns=(*seen.turns, user(), assistant(caption)))

    return apply


def moved(view: View, shift: int, mirror: bool = False) -> View:
    """The view with its images moved at random by up to `shift` pixels each way and, with
    `mirror`, mirrored half of the time: all of a sample's alike, where its words stay true."""
    if not shift and not mirror:
        return view

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        seen = view(sample, random)
        if seen is None or not seen.images:
            return seen
        said = [turn.text for turn in (*seen.turns, *seen.rejected)]
        by = shift if movable(said) else 0
        flipped = mirror and mirrorable(said) and random.random() < 0.5
        fresh: dict[int, Image] = {}

        def part(p):
            if not isinstance(p, Image):
                return p
            if id(p) not in fresh:
                image = mirrored(p.load()) if flipped else p.load()
                fresh[id(p)] = Image(augment(image, random, by, False), p.where)
            return fresh[id(p)]

        return seen.map_parts(part)

    return apply


def at_most(view: View, count: int, weight: Weight | None = None) -> View:
    """The view with at most `count` of an independent sample's questions, chosen at random, in
    proportion to weight(question, answer) where given."""

    def apply(sample: Sample, random: np.random.Generator) -> Sample | None:
        seen = view(sample, random)
        if seen is None or not seen.independent:
            return seen
        system = tuple(t for t in seen.turns if t.role == "system")
        turns = [t for t in seen.turns if t.role != "system"]
        if len(turns) <= 2 * count:
            return seen
        images = tuple(p for p in turns[0].content if not isinstance(p, Text))
        words = [tuple(p for p in t.content if isinstance(p, Text)) for t in turns]
        share = None
        if weight is not None:
            texts = [turn.text for turn in turns]
            share = np.array([weight(q, a) for q, a in zip(texts[::2], texts[1::2], strict=True)])
            share /= share.sum()
        chosen = sorted(random.choice(len(turns) // 2, count, replace=False, p=share))
        kept: list[Message] = []
        for n, i in enumerate(chosen):
            kept.append(Message("user", (images if n == 0 else ()) + words[2 * i]))
            kept.append(turns[2 * i + 1])
        return replace(seen, turns=(*system, *kept))

    return apply


def by_name(name: str, objectives: dict[str, View]) -> list[View]:
    """ "chat+text_to_image" -> both; ConfigError for a name the recipe has not."""
    chosen = []
    for part in name.split("+"):
        if part not in objectives:
            raise ConfigError(
                f"unknown objective '{part}'{nearest(part, objectives)}; this recipe has "
                f"{', '.join(objectives)}, or module:Class of your own"
            )
        chosen.append(objectives[part])
    return chosen
