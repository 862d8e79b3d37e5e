"""Whether drawn images show what was asked, and whether they differ from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import PIL.Image

from chiasm.core.errors import DataError
from chiasm.eval.judge import Judge
from chiasm.eval.metrics.image import distinct


def score_drawings(
    judge: Judge,
    drawings: Mapping[str, Sequence[PIL.Image.Image]],
    wanted: Mapping[str, Mapping[str, str]],
) -> dict:
    """Agreement of drawings (caption -> images) with what their captions say
    (caption -> attribute -> value), as the judge sees them; fractions over all images.

    joint: every wanted attribute. One entry an attribute. distinct: different images over all
    images, within each caption. distance: mean pixel distance within a caption (see
    metrics.image). n: images judged. per_caption: caption -> joint. Raises DataError for a
    caption without images, without wanted attributes, or wanting what the judge does not know.
    """
    if not drawings:
        raise DataError("there are no drawings to score")
    counts = dict.fromkeys(["joint", *judge.attributes], 0)
    asked = dict.fromkeys(judge.attributes, 0)
    per_caption: dict[str, float] = {}
    different, distances, n = 0, [], 0
    for caption, images in drawings.items():
        goal = _goal(judge, caption, images, wanted)
        seen = judge.predict(images)
        joint = sum(all(one[name] == value for name, value in goal.items()) for one in seen)
        for name, value in goal.items():
            counts[name] += sum(one[name] == value for one in seen)
            asked[name] += len(seen)
        diversity = distinct(images)
        different, n = different + diversity.count, n + len(images)
        distances.append(diversity.distance)
        counts["joint"] += joint
        per_caption[caption] = joint / len(images)
    by_attribute = {name: counts[name] / asked[name] for name in asked if asked[name]}
    return {
        "joint": counts["joint"] / n,
        **by_attribute,
        "distinct": different / n,
        "distance": sum(distances) / len(distances),
        "n": n,
        "per_caption": per_caption,
    }


def _goal(
    judge: Judge, caption: str, images: Sequence, wanted: Mapping[str, Mapping[str, str]]
) -> Mapping[str, str]:
    if not images:
        raise DataError(f"caption '{caption}' has no drawings; draw at least one")
    goal = wanted.get(caption)
    if not goal:
        raise DataError(f"caption '{caption}': nothing says what it should show")
    for name, value in goal.items():
        if value not in judge.attributes.get(name, ()):
            raise DataError(f"caption '{caption}': the judge does not know {name} '{value}'")
    return goal
