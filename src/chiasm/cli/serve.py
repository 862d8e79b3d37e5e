"""chiasm serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions


@dataclass(kw_only=True)
class Serve(DeviceOptions):
    """An OpenAI-compatible API and a page over trained models; ends with SIGTERM or Ctrl-C."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]]
    """Folders of models of either route, ours or in a published layout, and contrastive encoders,
    or OWNER/NAME of the Hugging Face hub; each is asked for by its folder's name, or NAME."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port."""
    api_key: str = ""
    """What clients must send (default: CHIASM_API_KEY, else a fresh one, printed)."""
    max_batch: int = 16
    """Replies of one model that are computed together; a guided image takes two."""
    max_queue: int = 64
    """Requests of one model that may wait beside them; more are told to come back."""
    shutdown_timeout: int = 30
    """Seconds that requests under way have to end after SIGTERM."""
    allow_image_host: tuple[str, ...] = ()
    """Names of hosts that images may be fetched from; by default they must come with the
    request."""
    dtype: Literal["fp32", "bf16", "int8", "int4", "auto"] | None = None
    """What weights are held in (default: bf16 on a GPU that has it, else fp32). On a CPU "fp32"
    answers as `chiasm eval` does; the others hold language models, are faster and less exact
    (docs/serve.md); "auto" is the fastest here of the first three."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.recipes.serve_command import serve_runs

        serve_runs(
            self.runs, self.host, self.port, self.api_key, self.max_batch, self.max_queue,
            self.shutdown_timeout, self.allow_image_host, self.dtype,
        )  # fmt: skip
