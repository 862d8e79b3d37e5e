"""Low-rank adapters through peft: injected in place, merged exactly, saved in its format."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.core.config import nearest
from chiasm.core.errors import CheckpointError, ConfigError, MissingExtraError
from chiasm.mllm.config import LoRAConfig, LoRAGroup

PARTS = ("language", "vision", "projector")
"""Parts of an MLLM that can have adapters, by their names in the model."""

GROUPS = {"language_model": "language", "vision": "vision", "projector": "projector"}
"""What configurations call them."""

OVER_LANGUAGE = {"language.": ""}
"""Names of an adapter over the language model alone: see save_adapters."""


def add_adapters(model: Any, config: LoRAConfig) -> None:
    """Put adapters on the matrices of an MLLM that config.targets choose; B starts at zero, so the
    function is unchanged. Raises ConfigError for a target that chooses none."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "Training with low-rank adapters")
    import peft

    for name in config.groups:
        if name not in GROUPS:
            raise ConfigError(
                f"model.lora.groups: no part '{name}'{nearest(name, GROUPS)}; the parts are "
                f"{', '.join(GROUPS)}"
            )
    for group, targets in _targets(model, config.targets).items():
        own = config.groups.get(group, LoRAGroup())
        settings = peft.LoraConfig(
            r=config.rank if own.rank is None else own.rank,
            lora_alpha=config.alpha if own.alpha is None else own.alpha,  # type: ignore[arg-type]  # peft divides by it: any number will do
            target_modules=targets,
            use_dora=config.dora,
            use_rslora=config.rslora,
        )
        peft.inject_adapter_in_model(settings, getattr(model, GROUPS[group]))


def _targets(model: Any, patterns: tuple[str, ...]) -> dict[str, list[str]]:
    """What peft is told to adapt in each group: last parts of names where all patterns are such,
    else whole names."""
    matrices = {
        f"{group}.{name}": (group, name)
        for group, part in GROUPS.items()
        for name, module in getattr(model, part).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    plain = [p for p in patterns if "*" not in p and not p.startswith(tuple(GROUPS))]
    chosen: dict[str, list[str]] = {}
    found = dict.fromkeys(patterns, False)
    for whole, (group, name) in matrices.items():
        for pattern in patterns:
            ends = group == "language_model" and f".{name}".endswith(f".{pattern}")
            if ends if pattern in plain else fnmatchcase(whole, pattern):
                found[pattern] = True
                chosen.setdefault(group, []).append(name)
    # Names that only some language models have are left out, as long as one of them is there.
    lost = [p for p, hit in found.items() if not hit and (p not in plain or not chosen)]
    if lost or not chosen:
        raise ConfigError(
            f"model.lora.targets: '{(lost or ['nothing'])[0]}' is the name of no matrix; there are "
            f"{', '.join(list(matrices)[:: max(1, len(matrices) // 8)])}, ..."
        )
    if len(plain) == len(patterns):
        chosen["language_model"] = [p for p in plain if found[p]]
    return {group: list(dict.fromkeys(names)) for group, names in chosen.items()}


def adapters_of(model: nn.Module) -> list[Any]:
    """The adapted layers, in module order."""
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]


def parts_of(layer: Any) -> list[nn.Module]:
    """What an adapted layer trains: A, B and, with DoRA, the lengths of the rows."""
    lengths = layer.lora_magnitude_vector
    return [layer.lora_A, layer.lora_B, *([lengths] if len(lengths) else [])]


@contextmanager
def disabled(layers: Sequence[Any]) -> Iterator[None]:
    """Adapted layers as their base layers for a while; what is trained stays so."""
    trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def untouched(layers: Sequence[Any]) -> bool:
    """Whether every B is still 0, as adapters begin."""
    return not any(bool(p.any()) for layer in layers for p in layer.lora_B.parameters())


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
    for part in model.modules():
        if hasattr(part, "peft_config"):
            del part.peft_config


def adapted_parts(model: Any) -> list[str]:
    """The parts of an MLLM that have adapters."""
    return [part for part in PARTS if adapters_of(getattr(model, part))]


def save_adapters(
    folder: Path,
    model: Any,
    source: str,
    names: Mapping[str, str],
    full: Mapping[str, Tensor] | None = None,
) -> None:
    """adapter_config.json and adapter_model.safetensors, as peft reads them over `source`.

    names: beginnings of names in our model -> in the model at `source`; adapters elsewhere are left
    out. full: parameters that are saved whole beside them, under their names at `source`.
    """
    import peft
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state, settings = {}, []
    for part in adapted_parts(model):
        module = getattr(model, part)
        own = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
        own = {renamed(f"{part}.{name}", names): value for name, value in own.items()}
        if None in own:
            continue
        state |= own
        targets = module.peft_config["default"].target_modules
        layers = [name for name, layer in module.named_modules() if layer in adapters_of(module)]
        whole = [str(renamed(f"{part}.{name}.", names))[:-1] for name in layers]
        settings.append((module.peft_config["default"], sorted(targets), whole))
    config = _joined(settings, source, whole_model=names is not OVER_LANGUAGE)
    if full:
        state |= full
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in full})
    save_file(
        {f"base_model.model.{n}": v.detach().cpu().contiguous() for n, v in state.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config.save_pretrained(str(folder))


def _joined(
    settings: list[tuple[Any, list[str], list[str]]], source: str, whole_model: bool
) -> Any:
    """One configuration of peft for the adapters of all parts, (its own, targets, whole names).
    Last parts of names would choose matrices of other parts of a whole model too."""
    joined = copy.deepcopy(settings[0][0])
    joined.base_model_name_or_path = source
    if whole_model or "." in settings[0][1][0]:
        joined.target_modules = {name for _, _, whole in settings for name in whole}
    for own, _, whole in settings[1:]:
        if own.r != joined.r:
            joined.rank_pattern |= dict.fromkeys(whole, own.r)
        if own.lora_alpha != joined.lora_alpha:
            joined.alpha_pattern |= dict.fromkeys(whole, own.lora_alpha)
    return joined


def load_adapters(folder: Path, model: Any, names: Mapping[str, str]) -> list[str]:
    """Fill a model's adapters with what save_adapters wrote; the names of the parameters that were
    saved whole. CheckpointError if they differ."""
    import peft
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; was the training finished?")
    saved = {
        name.removeprefix("base_model.model."): value for name, value in load_file(file).items()
    }
    mine, parts = {}, {}
    for part in adapted_parts(model):
        module = getattr(model, part)
        for name, value in peft.get_peft_model_state_dict(
            module, save_embedding_layers=False
        ).items():
            theirs = renamed(f"{part}.{name}", names)
            if theirs is not None:
                mine[theirs], parts[theirs] = value, (part, name)
    lora = {name: value for name, value in saved.items() if ".lora_" in name}
    if {n: v.shape for n, v in mine.items()} != {n: v.shape for n, v in lora.items()}:
        odd = sorted(lora.keys() ^ mine.keys()) or ["another rank or width"]
        raise CheckpointError(
            f"{file}: does not fit the model's adapters ({odd[0]}); "
            "is its base still what it was trained on?"
        )
    for part in adapted_parts(model):
        own = {parts[n][1]: value for n, value in lora.items() if parts[n][0] == part}
        if own:
            peft.set_peft_model_state_dict(getattr(model, part), own)
    return sorted(saved.keys() - lora.keys())


def renamed(name: str, names: Mapping[str, str]) -> str | None:
    """A name of ours as the other model has it, None where it has no such part."""
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return None


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
