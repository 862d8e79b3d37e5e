"""Options that several commands share, each written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from chiasm.recipes.recipe import NAMES

RunFolder = Annotated[
    Path,
    arg(
        metavar="RUN",
        help="Folder of a trained model of either route, or of one in a published layout, or "
        "OWNER/NAME of the Hugging Face hub.",
    ),
]
RecipeName = Annotated[
    str,
    arg(
        metavar="RECIPE",
        help=f"{', '.join(NAMES)}, a Python file with recipe(), or the recipe.json of a run.",
    ),
]
NewFolder = Annotated[Path, arg(metavar="FOLDER", aliases=["-o"])]
Image = Annotated[Path, arg(metavar="IMAGE")]
Source = Positional[Annotated[str, arg(metavar="SOURCE")]]


@dataclass(kw_only=True)
class DeviceOptions:
    """Of commands that compute."""

    device: Annotated[str, arg(metavar="auto|cpu|cuda|cuda:N|mps")] = ""
    """Where to compute; auto is CUDA, else MPS, else the CPU (default: CHIASM_DEVICE, else
    auto)."""

    def use_device(self) -> None:
        """Compute there from now on. Call it when the arguments are known to be right: it imports
        torch."""
        from chiasm.core.device import compute_on

        compute_on(self.device)


@dataclass(kw_only=True)
class JobOptions:
    """Of commands that write shards, each of which is computed alone."""

    array_index: int | None = None
    """Of shards, do those of one job of an array ($SLURM_ARRAY_TASK_ID), counted from 0."""
    array_count: int = 1
    """Jobs of that array ($SLURM_ARRAY_TASK_COUNT)."""
    ray: int = 0
    """Of shards, processes of Ray Data that share the work."""
    workers: int = 1
    """Threads that decode; of shards, processes of this machine that share the work."""


@dataclass(kw_only=True)
class ReadingOptions:
    """How a data set is read."""

    format: str | None = None
    """The format of the source, where it is not detected."""
    images: Path | None = None
    """The folder that image paths are relative to (default: the file's own); / allows absolute
    paths."""
    strict: bool = False
    """Leave out records with a key that is not used."""


@dataclass(kw_only=True)
class TaskOptions:
    """Which questions a model is asked, and how its replies are scored."""

    task: str = "easy-vqa"
    """A benchmark (vqav2, gqa, textvqa, docvqa, chartqa, ai2d, mmmu, mmstar, mmbench, pope,
    ocrbench, screenspot, coco-captions, flickr30k, imagenet, video-mme, geneval), "easy-vqa",
    hf:ORG/NAME, or a file or folder in any format that train reads: its test half, or all of a file
    that the model was not trained on."""
    limit: int = 2000
    """At most this many questions, whole images drawn by the seed; 0 for all."""
    seed: int = 0
    """Seed of that draw."""
    batch_size: int = 0
    """Batch size; 0 for as many questions as fit. Replies do not depend on it."""
    max_tokens: int = 32
    """Longest reply."""
    metric: str = ""
    """exact, vqa, anls, relaxed, choice, contains, yes-no, caption, transcript, click, box,
    perplexity; drawing, of captions; reconstruction, by an image tokenizer; by default the task's
    own."""
    columns: str = ""
    """Of records, where they are not called as usual: "question=q answer=gold"."""
    data: Path | None = None
    """Folder of the benchmark's published files (default data/TASK)."""
    split: str = ""
    """Split of the benchmark (default the one that has answers)."""
    turns: Literal["all", "last"] = "all"
    """all: every assistant turn of a conversation is a question; last: its last one only."""
    history: Literal["gold", "own"] = "gold"
    """Between the questions of a conversation stand its own answers (gold) or the model's replies
    (own)."""


def say(line: str) -> None:
    """Print a line as it is."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
