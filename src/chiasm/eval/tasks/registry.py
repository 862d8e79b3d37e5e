"""Benchmarks by name."""

from __future__ import annotations

import importlib
from pathlib import Path

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Sample
from chiasm.eval.tasks.definition import Definition

NAMES = {
    "vqav2": "vqav2:DEFINITION",
    "gqa": "gqa:DEFINITION",
    "textvqa": "textvqa:DEFINITION",
    "docvqa": "docvqa:DEFINITION",
    "chartqa": "chartqa:DEFINITION",
    "ai2d": "ai2d:DEFINITION",
    "mmmu": "mmmu:DEFINITION",
    "mmstar": "mmstar:DEFINITION",
    "mmbench": "mmbench:DEFINITION",
    "pope": "pope:DEFINITION",
    "ocrbench": "ocrbench:DEFINITION",
    "screenspot": "screenspot:DEFINITION",
    "coco-captions": "captions:COCO",
    "flickr30k": "captions:FLICKR",
    "imagenet": "imagenet:DEFINITION",
    "video-mme": "video_mme:DEFINITION",
    "geneval": "geneval:DEFINITION",
}


def find_benchmark(name: str) -> Definition:
    """A benchmark by name. Raises ConfigError naming the nearest."""
    if name not in NAMES:
        raise ConfigError(
            f"unknown benchmark '{name}'{nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    module, _, attribute = NAMES[name].partition(":")
    return getattr(importlib.import_module(f"chiasm.eval.tasks.{module}"), attribute)


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
