"""Several data sets as one: how much of each, how often at most, by what measure.

    --data a.jsonl,b_dir            all of both
    --data a.jsonl=2,b_dir=1        two samples of a for one of b
    --data mixture.json             {"unit": "tokens", "temperature": 2, "sources": [
                                        {"data": "a.jsonl", "weight": 2, "epochs": 3},
                                        {"data": "b_dir", "weight": 1, "name": "b"}]}

A stage may weigh the sources anew (Stage.mix), by the names they have here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from chiasm.core.config import from_dict, nearest, tag
from chiasm.core.errors import ConfigError

Unit = Literal["samples", "tokens"]


@tag("mixture_source")
@dataclass(frozen=True)
class Ingredient:
    """data: as of train. weight: its part of the mixture; None, for all sources alike, makes it
    the number of its samples. epochs: passes through it in a stage at most, after which the
    others share its part; 0 is no limit. name: by default the last part of `data`. images: the
    folder that its image paths are relative to, as of data import."""

    data: str
    weight: float | None = None
    epochs: int = 0
    name: str = ""
    images: str = ""


@tag("mixture")
@dataclass(frozen=True)
class Mixture:
    """unit: what the weights count. temperature: weights are raised to 1 / temperature, so that
    above 1 small sources are seen more often than their weight says (2005.14165 and multilingual
    models since: 1911.02116, section 3.1, alpha = 1 / temperature)."""

    sources: tuple[Ingredient, ...]
    unit: Unit = "samples"
    temperature: float = 1.0


def parse(data: str) -> Mixture | None:
    """The mixture that `data` spells or whose file it names; None for a single data set. Raises
    ConfigError saying what is wrong."""
    path = Path(data).expanduser()
    if path.suffix == ".json" and path.is_file():
        mixture = _from_file(path)
    elif "," in data and not path.exists():
        mixture = Mixture(tuple(map(_ingredient, filter(None, data.split(",")))))
    else:
        return None
    return None if mixture is None else _checked(mixture, data)


def weights(mixture: Mixture, counts: Sequence[int], anew: dict[str, float]) -> list[float]:
    """Each source's part, of sources with so many samples; `anew` replaces weights by name and
    leaves out the sources it does not name. Raises ConfigError for a name that none has."""
    names = [source.name for source in mixture.sources]
    if unknown := next((name for name in anew if name not in names), None):
        raise ConfigError(f"mix: no source is called '{unknown}'{nearest(unknown, names)}; "
                          f"there are {', '.join(names)}")  # fmt: skip
    if anew and (min(anew.values()) < 0 or not any(anew.values())):
        raise ConfigError(f"mix: weights {anew}; give none below 0 and one above it")
    plain = [
        count if source.weight is None else source.weight
        for source, count in zip(mixture.sources, counts, strict=True)
    ]
    if anew:
        plain = [anew.get(name, 0.0) for name in names]
    return [weight ** (1 / mixture.temperature) if weight else 0.0 for weight in plain]


def _from_file(path: Path) -> Mixture | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a data set perhaps; its reader says what is wrong
    if not isinstance(said, dict) or "sources" not in said:
        return None
    mixture: Mixture = from_dict(Mixture, said, path.name)
    beside = tuple(replace(s, data=_beside(path, s.data)) for s in mixture.sources)
    return replace(mixture, sources=beside)


def _beside(file: Path, data: str) -> str:
    """Paths of a mixture's file are relative to it."""
    other = file.parent / data
    return str(other) if other.exists() else data


def _ingredient(text: str) -> Ingredient:
    data, equals, weight = text.strip().rpartition("=")
    try:
        return Ingredient(data, float(weight)) if equals else Ingredient(weight)
    except ValueError:
        raise ConfigError(f"--data {text}: '{weight}' is no weight; write PATH=NUMBER") from None


def _checked(mixture: Mixture, data: str) -> Mixture:
    named = tuple(replace(s, name=s.name or _name(s.data)) for s in mixture.sources)
    names = [source.name for source in named]
    weighed = [source for source in named if source.weight is not None]
    if not named:
        raise ConfigError(f"--data {data}: a mixture of nothing; name its sources")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--data {data}: two sources are called '{twice}'; "
                          'give them a "name" in a mixture file')  # fmt: skip
    if weighed and len(weighed) < len(named):
        raise ConfigError(f"--data {data}: only some sources have a weight; give it to all or none")
    if mixture.temperature <= 0:
        raise ConfigError(f"--data {data}: temperature {mixture.temperature}; make it above 0")
    if any(source.epochs < 0 or (source.weight or 0) < 0 for source in named):
        raise ConfigError(f"--data {data}: a weight or epochs below 0; give 0 or more")
    if weighed and not any(source.weight for source in weighed):
        raise ConfigError(f"--data {data}: every weight is 0; give one above it")
    return replace(mixture, sources=named)


def _name(data: str) -> str:
    """tables-qa of data/tables-qa and of data/tables-qa/train.jsonl."""
    path = Path(data.rpartition(":")[2])
    return path.parent.name if path.stem in ("train", "test") and path.parent.name else path.stem
