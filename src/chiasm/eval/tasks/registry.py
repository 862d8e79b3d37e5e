"""Benchmarks by name."""

from __future__ import annotations

from pathlib import Path

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.registry import Registry
from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import Definition

NAMES: Registry[Definition] = Registry(
    "benchmark",
    Definition,
    {
        "vqav2": "chiasm.eval.tasks.published:VQAV2",
        "gqa": "chiasm.eval.tasks.published:GQA",
        "textvqa": "chiasm.eval.tasks.published:TEXTVQA",
        "docvqa": "chiasm.eval.tasks.published:DOCVQA",
        "chartqa": "chiasm.eval.tasks.published:CHARTQA",
        "ai2d": "chiasm.eval.tasks.ai2d:DEFINITION",
        "mmmu": "chiasm.eval.tasks.mmmu:DEFINITION",
        "mmstar": "chiasm.eval.tasks.mmstar:DEFINITION",
        "mmbench": "chiasm.eval.tasks.mmbench:DEFINITION",
        "pope": "chiasm.eval.tasks.published:POPE",
        "ocrbench": "chiasm.eval.tasks.ocrbench:DEFINITION",
        "screenspot": "chiasm.eval.tasks.screenspot:DEFINITION",
        "coco-captions": "chiasm.eval.tasks.published:COCO",
        "flickr30k": "chiasm.eval.tasks.published:FLICKR",
        "imagenet": "chiasm.eval.tasks.imagenet:DEFINITION",
        "video-mme": "chiasm.eval.tasks.video_mme:DEFINITION",
        "geneval": "chiasm.eval.tasks.geneval:DEFINITION",
    },
)


def find_benchmark(name: str) -> Definition:
    """A benchmark by name, or module:NAME of the user's own; ConfigError names the nearest."""
    return NAMES.find(name)


def read_benchmark(name: str, folder: Path, split: str = "") -> list[Sample]:
    """All questions of a benchmark from a local copy of its published files. Raises DataError
    saying which files a folder should hold."""
    definition = find_benchmark(name)
    remedy = f"put {definition.layout} there" + (" or add --download" if definition.hub else "")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {remedy}")
    try:
        samples = list(definition.read(folder, split or definition.split))
    except DataError as error:
        raise DataError(f"{error}; {name} is read from {definition.layout}") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: not {name} as it is published ({type(error).__name__}: {error}); {remedy}"
        ) from None
    if not samples:
        raise DataError(f"{folder}: no question of the split; {remedy}")
    return samples


def download(name: str, folder: Path) -> None:
    """Fetch a benchmark from the Hugging Face hub into a folder. Only where a user asks for it."""
    definition = find_benchmark(name)
    if not definition.hub:
        raise ConfigError(f"{name} is not on the hub; put {definition.layout} into {folder}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(definition.hub, repo_type="dataset", local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{definition.hub}: could not be fetched ({reason}); "
            f"try again or put {definition.layout} into {folder}"
        ) from None
