"""chiasm data import and filter: write a data set anew, all of it or what rules keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chiasm.cli.options import JobOptions, NewFolder, ReadingOptions, Source, say
from chiasm.core.errors import ConfigError


@dataclass(kw_only=True)
class WritingOptions(ReadingOptions, JobOptions):
    to: str = "messages"
    """messages, webdataset or parquet."""
    shard: int = 0
    """Write shards of so many samples, each by itself, into a folder that may hold some already; to
    webdataset or parquet; not with rules that compare samples with each other."""

    def by_shards(self, source: str, out: Path, rules: tuple[str, ...] = ()) -> None:
        """Both halves, as training and evaluation would divide them."""
        if self.images is not None:
            raise ConfigError("--images does not go with --shard; import without shards first")
        from chiasm.data.shard_import import ImportPlan
        from chiasm.recipes.run_shards import run_sharded

        data = f"{self.format}:{source}" if self.format else source
        for split in ("train", "test"):
            plan = ImportPlan(data, split, self.to, self.shard, rules)
            run_sharded(plan, out, self.array_index, self.array_count, self.ray, self.workers)


@dataclass(kw_only=True)
class Import(WritingOptions):
    """Turn a data set of any known format into messages JSONL, WebDataset or parquet."""

    source: Source
    """A file or folder (messages, LLaVA, ShareGPT, LLaMA-Factory, ms-swift, parquet, WebDataset,
    image folder, VLMEvalKit, COCO captions, x.jpg + x.txt) or hf:ORG/NAME."""
    out: NewFolder
    """A new folder."""

    def __call__(self) -> None:
        if self.shard:
            return self.by_shards(self.source, self.out)
        from chiasm.data.convert import BAD, convert
        from chiasm.data.load import detected
        from chiasm.data.quarantine import said_of

        done = convert(
            self.source, self.out, self.to, self.format, self.images, self.workers, self.strict
        )
        bad = len(done.quarantine)
        total = sum(done.counts.values())
        written = ", ".join(f"{count:,} {split}" for split, count in done.counts.items())
        left = f"; {bad:,} left out: {self.out / BAD}" if bad else ""
        say(detected(done.title, total + bad))
        say(f"{self.out}: {written} written as {self.to}{left}")
        if line := said_of(done.quarantine.unused):
            say(line)


@dataclass(kw_only=True)
class Filter(WritingOptions):
    """Leave out samples by rules; every drop is counted and listed with its reason."""

    source: Source
    """A file or folder in a known format, or hf:ORG/NAME."""
    out: NewFolder
    """A new folder; dropped.jsonl in it lists the drops, filter.json counts them."""
    rules: tuple[str, ...]
    """In order, each NAME or NAME:SETTING=VALUE,...: exact-duplicate, near-duplicate (least), size
    (least, most), aspect (most), entropy (least), blur (least), length (least, most), repetition
    (n, most), language (keep=en+de), agreement (model, least), contamination (test, n)."""

    def __call__(self) -> None:
        if self.shard:
            return self.by_shards(self.source, self.out, self.rules)
        from chiasm.data.filters.agreement import Agreement
        from chiasm.data.filters.run import DROPPED, filter_data, rule_of
        from chiasm.data.load import detected

        chosen = [rule_of(text) for text in self.rules]
        for _, rule in chosen:
            if isinstance(rule, Agreement) and rule.model:
                from chiasm.recipes.agreement import score_by

                rule.score = score_by(Path(rule.model))
        done = filter_data(
            self.source, self.out, chosen, self.to, self.format, self.images, self.workers,
            self.strict,
        )  # fmt: skip
        bad, kept = len(done.quarantine), sum(done.kept.values())
        say(detected(done.title, kept + sum(done.dropped.values()) + bad))
        for name, count in done.dropped.items():
            say(f"  {name}: {count:,} dropped")
        say(f"{self.out}: {kept:,} kept, {bad:,} unusable; reasons: {self.out / DROPPED}")
