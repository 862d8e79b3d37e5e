"""chiasm data import, inspect and filter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from chiasm.core.errors import ConfigError

Out = Annotated[Path, arg(aliases=["-o"])]


def import_(
    source: Positional[str],
    out: Out,
    to: str = "messages",
    format: str | None = None,
    images: Path | None = None,
    shard: int = 0,
    array_index: int | None = None,
    array_count: int = 1,
    ray: int = 0,
    workers: int = 1,
    strict: bool = False,
) -> None:
    """Turn a data set of any known format into messages JSONL, WebDataset or parquet.

    Args:
        source: A file or folder (messages, LLaVA, ShareGPT, LLaMA-Factory, ms-swift, parquet,
            WebDataset, image folder, VLMEvalKit, COCO captions, x.jpg + x.txt) or hf:ORG/NAME.
        out: A new folder.
        to: messages, webdataset or parquet.
        format: The format of the source, where it is not seen by itself.
        images: The folder that image paths are relative to (default: the file's own); / allows
            absolute paths.
        shard: Write shards of so many samples, each by itself, into a folder that may hold some
            already; to webdataset or parquet.
        array_index: Of shards, do those of one job of an array, counted from 0.
        array_count: Jobs of that array.
        ray: Of shards, processes of Ray Data that share the work.
        workers: Threads that decode.
        strict: A record with a key that is not used is left out.
    """
    if shard:
        if images is not None:
            raise ConfigError("--images does not go with --shard; import without shards first")
        return _by_shards(
            source, out, to, format, shard, (), array_index, array_count, ray, workers
        )
    from chiasm.data.convert import BAD, convert
    from chiasm.data.load import detected
    from chiasm.data.quarantine import said_of

    done = convert(source, out, to, format, images, workers, strict)
    bad = len(done.quarantine)
    total = sum(done.counts.values())
    written = ", ".join(f"{count:,} {split}" for split, count in done.counts.items())
    left = f"; {bad:,} left out: {out / BAD}" if bad else ""
    _say(detected(done.title, total + bad))
    _say(f"{out}: {written} written as {to}{left}")
    if line := said_of(done.quarantine.unused):
        _say(line)


def inspect(
    source: Positional[str],
    out: Annotated[Path | None, arg(aliases=["-o"])] = None,
    format: str | None = None,
    images: Path | None = None,
    tokenizer: Path | None = None,
    labels: bool = False,
    model: str = "mllm_smol",
    samples: int = 5,
    workers: int = 1,
    strict: bool = False,
) -> None:
    """Look a data set over before training: counts, sizes, languages, doubles, what is unusable.

    Args:
        source: A file or folder in a known format, or hf:ORG/NAME.
        out: The HTML page (default runs/inspect/NAME.html); the whole report is beside it as JSON.
        format: The format of the source, where it is not seen by itself.
        images: The folder that image paths are relative to (default: the file's own); / allows
            absolute paths.
        tokenizer: A tokenizer.json, or the folder of one or of a run, to count tokens with.
        labels: Instead print which words are learnt, in colour, and samples that teach nothing.
        model: Whose template decides the labels: a recipe's name or file, or the folder of a run.
        samples: So many samples' labels are printed; all of them are checked.
        workers: Threads that decode.
        strict: A record with a key that is not used is left out.
    """
    if labels:
        from chiasm.recipes.labels import inspect_labels

        return inspect_labels(source, model, samples)
    from chiasm.data.inspect.measure import inspect_data
    from chiasm.data.inspect.page import write_page
    from chiasm.data.inspect.show import show

    count = _token_counter(tokenizer) if tokenizer else None
    console = Console()
    with console.status("inspecting"):
        found = inspect_data(source, format, images, count, workers=workers, strict=strict)
    page = out or Path("runs/inspect") / f"{_stem(source)}.html"
    write_page(found, page)
    show(found, console)
    _say(f"the page: {page}, all of it: {page.with_suffix('.json')}")


def filter_(
    source: Positional[str],
    out: Out,
    rules: tuple[str, ...],
    to: str = "messages",
    format: str | None = None,
    images: Path | None = None,
    shard: int = 0,
    array_index: int | None = None,
    array_count: int = 1,
    ray: int = 0,
    workers: int = 1,
    strict: bool = False,
) -> None:
    """Leave out samples by rules; every drop is counted and listed with its reason.

    Args:
        source: A file or folder in a known format, or hf:ORG/NAME.
        out: A new folder; dropped.jsonl in it lists the drops, filter.json counts them.
        rules: In order, each NAME or NAME:SETTING=VALUE,...: exact-duplicate, near-duplicate
            (least), size (least, most), aspect (most), entropy (least), blur (least), length
            (least, most), repetition (n, most), language (keep=en+de), agreement (model, least),
            contamination (test, n).
        to: messages, webdataset or parquet.
        format: The format of the source, where it is not seen by itself.
        images: The folder that image paths are relative to (default: the file's own); / allows
            absolute paths.
        shard: As of import; not with rules that compare samples with each other.
        array_index: As of import.
        array_count: As of import.
        ray: As of import.
        workers: Threads that decode; of shards, processes that share the work.
        strict: A record with a key that is not used is left out.
    """
    if shard:
        if images is not None:
            raise ConfigError("--images does not go with --shard; import without shards first")
        return _by_shards(
            source, out, to, format, shard, rules, array_index, array_count, ray, workers
        )
    from chiasm.data.filters.agreement import Agreement
    from chiasm.data.filters.run import DROPPED, filter_data, rule_of
    from chiasm.data.load import detected

    chosen = [rule_of(text) for text in rules]
    for _, rule in chosen:
        if isinstance(rule, Agreement) and rule.model:
            from chiasm.recipes.agreement import score_by

            rule.score = score_by(Path(rule.model))
    done = filter_data(source, out, chosen, to, format, images, workers, strict)
    bad, kept = len(done.quarantine), sum(done.kept.values())
    _say(detected(done.title, kept + sum(done.dropped.values()) + bad))
    for name, count in done.dropped.items():
        _say(f"  {name}: {count:,} dropped")
    _say(f"{out}: {kept:,} kept, {bad:,} unusable; reasons: {out / DROPPED}")


def _by_shards(
    source: str,
    out: Path,
    to: str,
    format: str | None,
    size: int,
    rules: tuple[str, ...],
    index: int | None,
    of: int,
    ray: int,
    workers: int,
) -> None:
    """Both halves, as training and evaluation would divide them."""
    from chiasm.data.shard_import import ImportPlan
    from chiasm.recipes.carry_out import carry_out

    data = f"{format}:{source}" if format else source
    for split in ("train", "test"):
        carry_out(ImportPlan(data, split, to, size, rules), out, index, of, ray, workers)


def _token_counter(path: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    file = path
    if path.is_dir():
        file = next(iter(sorted(path.rglob("tokenizer.json"))), path / "tokenizer.json")
    if not file.is_file():
        raise ConfigError(f"--tokenizer {path}: no tokenizer.json there; name the file")
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _stem(source: str) -> str:
    """A file name from a path or a name on the hub."""
    return re.sub(r"\W+", "-", Path(source).expanduser().resolve().stem) or "data"


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "import": import_,
    "inspect": inspect,
    "filter": filter_,
}
