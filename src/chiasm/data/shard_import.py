"""Importing and filtering a large data set shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Sample
from chiasm.data.convert import check_media
from chiasm.data.filters.run import decoded, rule_of, verdict
from chiasm.data.formats.parquet import write_parquet
from chiasm.data.formats.webdataset import write_webdataset
from chiasm.data.load import Split, load_samples
from chiasm.data.quarantine import Quarantine
from chiasm.data.shards import fingerprint

WRITERS = ("webdataset", "parquet")
ALONE = ("exact-duplicate", "near-duplicate")


@dataclass(frozen=True)
class ImportPlan:
    """How `data import` and `data filter` work by shards of `size` samples of one half of `data`.
    rules: as of filter; those that compare samples with each other see only their own shard, so
    they are refused."""

    data: str
    split: Split = "train"
    to: str = "webdataset"
    size: int = 1000
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to not in WRITERS:
            raise ConfigError(f"--to {self.to}: shards are written as {' or '.join(WRITERS)}; "
                              "choose one, or leave out --shard")  # fmt: skip
        if self.size < 1:
            raise ConfigError(f"--shard {self.size}: a shard has at least one sample")
        if alone := next((r for r in self.rules if r.partition(":")[0] in ALONE), None):
            raise ConfigError(f"--rules {alone}: compares all samples with each other, which "
                              "shards do not; run it without --shard")  # fmt: skip

    @property
    def threads(self) -> bool:
        return not self.rules  # decoding and hashing alone

    def work(self) -> Import:
        bad: dict[str, str] = {}

        def on_error(where: str, error: DataError) -> None:
            bad[where] = str(error)

        return Import(self, load_samples(self.data, self.split, on_error), bad)


class Import:
    """The work of an ImportPlan (data/shards.py). bad: the place of each record that is
    no sample, with the reason; the first shard's manifest lists them."""

    def __init__(self, plan: ImportPlan, samples: Sequence[Sample], bad: dict[str, str]):
        self.plan, self.samples, self.bad = plan, samples, bad
        self.fingerprint = fingerprint("import", vars(plan), len(samples), bad)
        self.count = -(-len(samples) // plan.size)

    def name(self, number: int) -> str:
        return f"{self.plan.split}-{number:06d}"

    def write(self, number: int, folder: Path) -> dict[str, Any]:
        size, rules = self.plan.size, [rule_of(text) for text in self.plan.rules]
        chosen = self.samples[number * size : (number + 1) * size]
        unusable = Quarantine(reasons={} if number else dict(self.bad))
        dropped: list[dict[str, str]] = []

        def passing() -> Iterator[Sample]:
            for sample in chosen:
                try:
                    check_media(sample)
                    found = verdict(decoded(sample), rules) if rules else None
                except DataError as error:
                    unusable.sample(sample, error)
                    continue
                if found is None:
                    yield sample
                    continue
                rule, reason = found
                dropped.append({"id": sample.name, "rule": rule, "reason": reason})

        kept = list(passing())
        if kept and self.plan.to == "parquet":
            write_parquet(kept, folder / f"{self.name(number)}.parquet")
        elif kept:
            write_webdataset(kept, folder, self.plan.split, len(kept))
            only = folder / f"{self.plan.split}-000000.tar"
            only.rename(folder / f"{self.name(number)}.tar")
        return {"kept": len(kept), "dropped": dropped, "unusable": unusable.reasons}

    def finish(self, out: Path, manifests: Sequence[dict[str, Any]]) -> None:
        """Nothing to add: the manifests say what was kept and why the rest was not."""
