"""chiasm export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions


@dataclass(kw_only=True)
class Export(DeviceOptions):
    """Write a model of either route as a published checkpoint, read it back and compare."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a trained model, or of a published checkpoint."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Folder for the checkpoint; new or empty."""
    to: str = "hf"
    """"hf" for transformers and what reads its layouts (vLLM); "gguf" for llama.cpp; or one layout:
    llava, llava-next, paligemma, idefics3, smolvlm, chameleon, emu3, or module:Class of your
    own."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.hub.export import export

        done = export(self.run, self.out, self.to)
        Console().print(f"{self.out}: {done}", soft_wrap=True, highlight=False)
