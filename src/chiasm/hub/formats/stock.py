"""A checkpoint of transformers, read whole and taken apart."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from chiasm.core.errors import CheckpointError, MissingExtraError
from chiasm.core.hf_tokenizer import load_hf_tokenizer
from chiasm.core.quiet import quiet
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub.mllm import assemble
from chiasm.hub.source import checkpoint_of
from chiasm.mllm.config import MLLMConfig
from chiasm.mllm.language import adopt_language
from chiasm.mllm.model import MLLM
from chiasm.train.checkpoint import read_json
from chiasm.vision.config import TowerOptions
from chiasm.vision.pretrained import adopt_encoder


@dataclass
class Stock:
    """A folder's model as transformers has it, in fp32, with what its processor is made of."""

    folder: Path
    model: Any
    tokenizer: Any
    images: Any

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def image(self) -> str:
        """The word that stands for an image."""
        return self.tokenizer.convert_ids_to_tokens(self.config.image_token_id)


def read_stock(folder: Path) -> Stock:
    """Raises CheckpointError for a folder that does not hold a model whole, with its processor."""
    from transformers import AutoImageProcessor

    model, given = read_model(folder), folder
    folder = checkpoint_of(folder)
    own = (given / "tokenizer_config.json").exists()
    with quiet():
        try:
            tokenizer = load_hf_tokenizer(given if own else folder)
            images = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder}: no processor that transformers can load ({first_line(error)}); fetch "
                "the repository whole"
            ) from None
    return Stock(folder, model, tokenizer, images)


def read_model(folder: Path) -> Any:
    """transformers' model in fp32; that of an adapter's folder is its base with the adapter merged.
    Raises CheckpointError where weights are missing or left over, which transformers itself would
    make up or drop."""
    from transformers import AutoModelForImageTextToText

    adapter, folder = folder, checkpoint_of(folder)
    check_readable(folder)
    with quiet():
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(  # type: ignore[misc]
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: transformers cannot load it ({first_line(error)})"
            ) from None
    for what in ("missing", "unexpected", "mismatched"):
        names = sorted(map(str, report[f"{what}_keys"]))
        if names:
            raise CheckpointError(
                f"{folder}: {len(names)} {what} weights, first {names[0]}; is it complete?"
            )
    return (model if adapter == folder else _merged(model, adapter)).eval()


def check_readable(folder: Path) -> None:
    """Raises CheckpointError, with what to do, for a folder whose weights transformers would read
    otherwise than they are meant, or not at all."""
    config = read_json(folder / "config.json")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else ""
        raise CheckpointError(
            f"{folder}: its weights are quantised ({method}), which is not read here; give the "
            "original checkpoint in fp32, bf16 or fp16"
        )
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder}: its classes are Python code of the repository (auto_map), which is never "
            "run; give a version of it converted to a class of transformers (often named -hf)"
        )
    for index in folder.glob("*.safetensors.index.json"):
        named = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).exists())
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(named)} shards are missing, first {missing[0]}; "
                "download the repository again (hf download)"
            )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: no .safetensors file; download the whole checkpoint, or convert a .bin "
            "(pickles are not read)"
        )


def _merged(model: Any, adapter: Path) -> Any:
    """The model with an adapter of peft folded into its weights."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "Reading an adapter")
    import peft

    with quiet():
        try:
            return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{adapter}: does not fit its base ({first_line(error)}); is that still what it "
                "was trained on?"
            ) from None


def take_apart(
    stock: Stock, config: MLLMConfig, tower: TowerOptions, template: ChatTemplate
) -> tuple[MLLM, Processor]:
    """Our model around the stock model's own encoder and language model; its projector is still to
    be filled. The precision that the checkpoint is stored in is kept in the language model's
    configuration, to be written again."""
    parts, source = stock.model.model, str(stock.folder)
    # Idefics3 has other names for them.
    encoder = parts.vision_tower if hasattr(parts, "vision_tower") else parts.vision_model
    body = parts.language_model if hasattr(parts, "language_model") else parts.text_model
    vision = adopt_encoder(encoder, source, tower)
    language = adopt_language(body, stock.model.lm_head, source)
    language.generation_config = stock.model.generation_config
    language.config.dtype = stored_dtype(stock.folder)
    model, processor = assemble(config, vision, language, stock.tokenizer, 1.0, template)
    return model.eval(), processor


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that most of a checkpoint's tensors are stored in, whatever its config.json
    says."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found.update(opened.get_slice(name).get_dtype() for name in opened.keys())  # noqa: SIM118
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(found.most_common(1)[0][0], torch.float32) if found else torch.float32


def chat_template_of(folder: Path) -> str | None:
    """The processor's chat template: a file of Jinja, or one of JSON as version 4 wrote it."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").exists():
        return read_json(folder / "chat_template.json")["chat_template"]
    return None


def first_line(error: Exception) -> str:
    """What an error says first, or its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
