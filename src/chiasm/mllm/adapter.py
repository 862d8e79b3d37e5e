"""Low-rank adapters through peft: injected in place, merged exactly, saved in its format."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.core.errors import CheckpointError, ConfigError, MissingExtraError
from chiasm.mllm.config import LoRAConfig


def add_adapters(model: nn.Module, config: LoRAConfig) -> None:
    """Put adapters on the matrices whose names end in config.targets; B starts at zero, so the
    function is unchanged."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "Training with low-rank adapters")
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides by it: any number will do
        target_modules=list(config.targets),
        use_dora=config.dora,
        use_rslora=config.rslora,
    )
    peft.inject_adapter_in_model(settings, model)


def adapters_of(model: nn.Module) -> list[Any]:
    """The adapted layers, in module order."""
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]


def parts_of(layer: Any) -> list[nn.Module]:
    """What an adapted layer trains: A, B and, with DoRA, the lengths of the rows."""
    lengths = layer.lora_magnitude_vector
    return [layer.lora_A, layer.lora_B, *([lengths] if len(lengths) else [])]


def adapter_flops(layer: Any, tokens: int) -> tuple[float, float]:
    """What the adapter of a layer costs forward: (by the token, and once a batch). DoRA multiplies
    B A out to know how long the rows are, which is the same for any number of tokens."""
    A, B = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    once = 2.0 * A.shape[0] * A.shape[1] * (A.shape[1] + B.shape[0])
    return 2.0 * (A.numel() + B.numel()) * tokens, once if len(layer.lora_magnitude_vector) else 0.0


def merge_adapters(model: nn.Module) -> None:
    """Fold every adapter into its matrix (LoRA: W + alpha/r · B A); leaves plain layers behind."""
    adapted = set(adapters_of(model))
    for name, layer in list[tuple[str, Any]](model.named_modules()):
        if layer in adapted:
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.base_layer)


def save_adapters(folder: Path, model: Any, source: str) -> None:
    """adapter_config.json and adapter_model.safetensors, as peft reads them over `source`."""
    import peft
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"base_model.model.{name}": value.detach().cpu().contiguous()
        for name, value in peft.get_peft_model_state_dict(
            model, save_embedding_layers=False
        ).items()
    }
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = source
    settings.save_pretrained(str(folder))


def load_adapters(folder: Path, model: Any) -> None:
    """Fill a model's adapters with what save_adapters wrote. CheckpointError if they differ."""
    import peft
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; was the training finished?")
    saved = {
        name.removeprefix("base_model.model."): value for name, value in load_file(file).items()
    }
    mine = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    if {n: v.shape for n, v in mine.items()} != {n: v.shape for n, v in saved.items()}:
        odd = sorted(saved.keys() ^ mine.keys()) or ["another rank or width"]
        raise CheckpointError(
            f"{file}: does not fit the language model's adapters ({odd[0]}); "
            "is model.language_model still what it was trained on?"
        )
    peft.set_peft_model_state_dict(model, saved)


def require_gpu() -> None:
    """Raise ConfigError where 4-bit training cannot run."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "model.lora.quantised: 4-bit training needs a CUDA GPU, and this machine has none; "
            "set it to false: plain adapters train on any machine"
        )


def quantisation() -> Any:
    """How a language model is read for QLoRA: 4-bit NormalFloat, scales quantised too, products in
    bfloat16. Raises MissingExtraError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora", "A 4-bit language model")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
