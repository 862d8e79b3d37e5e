"""Whether an image shows what a prompt asks, by rules over the objects found in it (GenEval,
2310.11513). Who finds them (a detector, metrics/flat_shapes.py) is another matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chiasm.eval.metrics.boxes import Box

SLACK = 0.1  # of both objects' extents; within it two objects are not beside one another


@dataclass(frozen=True)
class Seen:
    """An object found: its class, where (in pixels, y down), and its colour if known. A list of
    them stands in order of confidence."""

    name: str
    box: Box
    color: str | None = None


def agrees(wanted: Mapping, seen: Sequence[Seen]) -> bool:
    """Whether the objects fulfil a GenEval prompt's record.

    wanted: "include", a list of {"class", "count", and where asked "color", "position": [relation,
    index of an earlier entry]}: at least `count` objects of the class, at least `count` of them of
    the colour, each standing so to each object of the other entry. "exclude": a list of {"class",
    "count"}: fewer than `count`.
    """
    for rule in wanted.get("exclude") or ():
        if len(_of(rule, seen)) >= rule.get("count", 1):
            return False
    groups: list[list[Seen]] = []
    for rule in wanted["include"]:
        count = rule.get("count", 1)
        found = _of(rule, seen)[:count]
        right = [o for o in found if rule.get("color") in (None, o.color)]
        if len(found) < count or len(right) < count:
            return False
        if position := rule.get("position"):
            relation, other = position
            if not all(relation in relations(a, b) for a in found for b in groups[other]):
                return False
        groups.append(found)
    return True


def relations(a: Seen, b: Seen) -> set[str]:
    """How a stands to b: of "left of", "right of", "above" and "below" none, one or two. Centres
    must be further apart than a tenth of the extents, and in that direction by more than half of
    their distance."""
    far, moved = [], []
    for low, high in (("left", "right"), ("top", "bottom")):
        spans = [(getattr(o.box, low), getattr(o.box, high)) for o in (a, b)]
        offset = (sum(spans[0]) - sum(spans[1])) / 2
        free = max(0.0, abs(offset) - SLACK * sum(end - start for start, end in spans))
        moved.append(free if offset > 0 else -free)
        far.append(offset)
    length = (far[0] ** 2 + far[1] ** 2) ** 0.5
    if length == 0:
        return set()
    dx, dy = moved[0] / length, moved[1] / length
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def _of(rule: Mapping, seen: Sequence[Seen]) -> list[Seen]:
    return [o for o in seen if o.name == rule["class"]]
