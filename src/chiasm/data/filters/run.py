"""A data set through its rules: what is kept, and every drop with its reason."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Sample
from chiasm.data.convert import BAD, check_clips, writer
from chiasm.data.filters.agreement import Agreement
from chiasm.data.filters.aspect import Aspect
from chiasm.data.filters.blur import Blur
from chiasm.data.filters.contamination import Contamination
from chiasm.data.filters.entropy import Entropy
from chiasm.data.filters.exact_duplicate import ExactDuplicate
from chiasm.data.filters.language import Language
from chiasm.data.filters.length import Length
from chiasm.data.filters.near_duplicate import NearDuplicate
from chiasm.data.filters.repetition import Repetition
from chiasm.data.filters.rule import Rule
from chiasm.data.filters.size import Size
from chiasm.data.formats.reading import Reading
from chiasm.data.load import Source, open_data
from chiasm.data.parallel import mapped
from chiasm.data.quarantine import Quarantine

RULES: dict[str, Callable[..., Rule]] = {
    "exact-duplicate": ExactDuplicate,
    "near-duplicate": NearDuplicate,
    "size": Size,
    "aspect": Aspect,
    "entropy": Entropy,
    "blur": Blur,
    "length": Length,
    "repetition": Repetition,
    "language": Language,
    "agreement": Agreement,
    "contamination": Contamination,
}
DROPPED, REPORT = "dropped.jsonl", "filter.json"


def rule_of(text: str) -> tuple[str, Rule]:
    """size:least=64,most=4096 -> ("size", Size(64, 4096)). Raises ConfigError naming what is
    wrong."""
    name, _, rest = text.partition(":")
    if name not in RULES:
        raise ConfigError(f"--rules {name}: no such rule{nearest(name, RULES)}; known: "
                          f"{', '.join(RULES)}")  # fmt: skip
    kind: Any = RULES[name]
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    values: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        default = fields[key].default if key in fields else None
        if not equals or not isinstance(default, (int, float, str)):
            names = [n for n, f in fields.items() if isinstance(f.default, (int, float, str))]
            raise ConfigError(f"--rules {name}: '{pair}' is no setting of it{nearest(key, names)}; "
                              f"known: {', '.join(names) or 'none'}")  # fmt: skip
        try:
            values[key] = type(default)(value)
        except ValueError:
            raise ConfigError(f"--rules {name}: {key}={value} is no number") from None
    return name, kind(**values)


@dataclass(frozen=True)
class Filtered:
    """The title of the format, samples kept by split, samples dropped by rule, unusable ones."""

    title: str
    kept: dict[str, int]
    dropped: dict[str, int]
    quarantine: Quarantine


def filter_data(
    data: str,
    out: Path,
    rules: Sequence[tuple[str, Rule]],
    to: str = "messages",
    name: str | None = None,
    images: Path | None = None,
    workers: int = 1,
    strict: bool = False,
) -> Filtered:
    """Write what passes all rules into the folder `out`. workers: threads that decode; the rules
    see the samples in order.

    Every drop is a line of out/dropped.jsonl (id, split, rule, reason), the counts are in
    out/filter.json, what cannot be read at all in out/quarantine.jsonl. Raises DataError if
    nothing is left.
    """
    write = writer(to)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    quarantine = Quarantine(out / BAD, limit=1.0)
    reading = Reading(quarantine.record, images, strict=strict, unused=quarantine.unused)
    sources = open_data(data, name, reading=reading)
    kept: Counter[str] = Counter()
    dropped: Counter[str] = Counter({rule: 0 for rule, _ in rules})
    with (out / DROPPED).open("w", encoding="utf-8") as file:

        def passing(split: str, source: Source) -> Iterator[Sample]:
            for sample, seen in mapped(_tried, source.samples, workers):
                if isinstance(seen, DataError):
                    quarantine.sample(sample, seen)
                    continue
                found = verdict(seen, rules)
                if found is None:
                    kept[split] += 1
                    yield sample
                    continue
                rule, reason = found
                dropped[rule] += 1
                row = {"id": sample.name, "split": split, "rule": rule,
                       "reason": reason}  # fmt: skip
                file.write(json.dumps(row) + "\n")

        for split, source in sources.items():
            write(passing(split, source), out, split)
    quarantine.write_unused()
    report = {"data": data, "kept": kept, "dropped": dropped, "unusable": len(quarantine)}
    (out / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    if not kept:
        raise DataError(f"{data}: no sample passes; see {out / DROPPED}")
    title = next(iter(sources.values())).format.title
    return Filtered(title, dict(kept), dict(dropped), quarantine)


def _tried(sample: Sample) -> tuple[Sample, Sample | DataError]:
    try:
        check_clips(sample)
        return sample, decoded(sample)
    except DataError as error:
        return sample, error


def verdict(sample: Sample, rules: Sequence[tuple[str, Rule]]) -> tuple[str, str] | None:
    """The first rule that leaves the sample out, with its reason."""
    for name, rule in rules:
        reason = rule.reason(sample)
        if reason is not None:
            return name, reason
    return None


def decoded(sample: Sample) -> Sample:
    """The sample with its images decoded once for all rules."""

    def part(one: Any) -> Any:
        return Image(one.load(), one.where) if isinstance(one, Image) else one

    return sample.map_parts(part)
