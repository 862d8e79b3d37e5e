"""serve on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from rich.console import Console

from chiasm.core.device import model_device
from chiasm.core.errors import ConfigError, DataError, MissingExtraError
from chiasm.data.processor import Processor
from chiasm.generation.generator import Generator
from chiasm.hub.generic import GenericVLM
from chiasm.hub.load import load
from chiasm.nn.cpu_linear import Weights
from chiasm.nn.precision import held_in
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.dual import Dual, OwnDual


def serve_runs(
    runs: tuple[Path, ...],
    host: str,
    port: int,
    api_key: str,
    max_batch: int,
    max_queue: int,
    shutdown_timeout: int = 30,
    allow_image_host: tuple[str, ...] = (),
    dtype: Weights | Literal["auto"] | None = None,
) -> None:
    """Load the models and serve them until a signal. Raises ConfigError for two of one name,
    MissingExtraError without the extra `serve`."""
    try:
        from chiasm.serve.limits import Limits
        from chiasm.serve.listen import Address, listen
        from chiasm.serve.remote import Remote
        from chiasm.serve.server import Server
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve", "chiasm serve") from None
    if not runs:
        raise ConfigError("serve: give the folder of at least one trained model")
    models: dict[str, Generator | Dual] = {}
    for run in runs:
        name = _name(run)
        if name in models:
            raise ConfigError(f"serve: two models are called '{name}'; rename a folder")
        models[name] = served(run, dtype)
    api_key = api_key or os.environ.get("CHIASM_API_KEY", "")
    hosts = frozenset(name.lower() for name in allow_image_host)
    limits = Limits(remote=Remote(hosts))
    listen(
        Server(models, limits, max_batch, max_queue), Address(host, port, api_key, shutdown_timeout)
    )


def served(run: Path, weights: Weights | Literal["auto"] | None = None) -> Generator | Dual:
    """A folder's model as the server wants it. weights: None is bf16 on accelerators that have it,
    else fp32; "auto" is what steps are fastest in here. DataError for an image tokenizer."""
    model, processor = load(run)
    if isinstance(model, GenericVLM):
        raise ConfigError(
            f"{run}: runs by its own class, {model.kind}, which is not served here; use a server "
            "that knows it (vllm serve, transformers serve), or chat, eval and chiasm.load"
        )
    if isinstance(processor, Processor):
        device = model_device(model)
        if weights is None or (weights == "auto" and device.type != "cpu"):
            weights = held_in(device)
        if weights != "auto":
            return Generator(model, processor, weights=weights)
        fastest: Weights = model.fastest_weights() if hasattr(model, "fastest_weights") else "fp32"
        Console().print(f"{_name(run)}: steps are fastest in {fastest} here", highlight=False)
        return Generator(model, processor, weights=fastest)
    if isinstance(model, DualEncoder):
        return OwnDual(model, processor)
    raise DataError(
        f"{run}: holds a {type(model).__name__}, which neither talks nor embeds; give an MLLM, a "
        "unified model or a contrastive encoder"
    )


def _name(run: Path) -> str:
    """The folder's name, as it is asked for."""
    return run.expanduser().resolve().name
