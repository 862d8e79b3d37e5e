"""chiasm merge-lora."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions


@dataclass(kw_only=True)
class MergeLora(DeviceOptions):
    """Merge adapters that were saved alone into the language model, as a run of its own."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of an MLLM trained with --model.lora.merged false."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Folder for the merged model."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.hub.load import published_base
        from chiasm.hub.mllm import merge

        merge(self.run, self.out, published_base)
        language = self.out / "language"
        Console().print(f"{self.out}: adapters merged; {language} is a checkpoint of transformers")
