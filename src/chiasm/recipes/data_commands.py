"""chiasm data import, inspect and filter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

Out = Annotated[Path, arg(aliases=["-o"])]


def import_(
    source: Positional[str],
    out: Out,
    to: str = "messages",
    format: str | None = None,
    images: Path | None = None,
) -> None:
    """Turn a data set of any known format into messages JSONL, WebDataset or parquet.

    Args:
        source: A file or folder (messages, LLaVA, ShareGPT, LLaMA-Factory, ms-swift, parquet,
            WebDataset, image folder, VLMEvalKit, COCO captions, x.jpg + x.txt) or hf:ORG/NAME.
        out: A new folder.
        to: messages, webdataset or parquet.
        format: The format of the source, where it is not seen by itself.
        images: The folder that image paths are relative to (default: the file's own).
    """
    from chiasm.data.convert import BAD, convert
    from chiasm.data.load import detected

    done = convert(source, out, to, format, images)
    bad = len(done.quarantine)
    total = sum(done.counts.values())
    written = ", ".join(f"{count:,} {split}" for split, count in done.counts.items())
    left = f"; {bad:,} left out: {out / BAD}" if bad else ""
    _say(detected(done.title, total + bad))
    _say(f"{out}: {written} written as {to}{left}")


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {"import": import_}
