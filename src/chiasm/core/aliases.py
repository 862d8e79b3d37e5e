"""Names of earlier versions and what they are called now: kinds and keys of saved JSON, fields set
on the command line or in Python, commands, options. All old names stand here and nowhere else, and
none is taken out: runs that were saved load for ever."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError


class RenamedWarning(FutureWarning):
    """Something was called by its name of an earlier version."""


KINDS = {
    "AnyResConfig": "anyres",
    "AutoencoderConfig": "autoencoder",
    "AveragePoolConfig": "average_pool",
    "CAbstractorConfig": "c_abstractor",
    "ContrastiveConfig": "contrastive",
    "CropConfig": "crop",
    "CrossAttentionConfig": "cross_attention",
    "DAbstractorConfig": "d_abstractor",
    "DeepStackConfig": "deepstack",
    "FSQConfig": "fsq",
    "FusedConfig": "fused_encoders",
    "GroupSettings": "group",
    "GuardSettings": "guard",
    "IdentityConfig": "identity",
    "Ingredient": "mixture_source",
    "LFQConfig": "lfq",
    "LinearConfig": "linear",
    "LoRAConfig": "lora",
    "MLLMConfig": "mllm",
    "MLPConfig": "mlp",
    "Mixture": "mixture",
    "NativeConfig": "native",
    "PadConfig": "pad",
    "PerceiverConfig": "perceiver",
    "PixelShuffleConfig": "pixel_shuffle",
    "QFormerConfig": "qformer",
    "Ranks": "ranks",
    "Recipe": "recipe",
    "ResidualMLPConfig": "residual_mlp",
    "ResidualVQConfig": "residual_vq",
    "ResizeConfig": "resize",
    "SavedMLLM": "mllm_run",
    "SplitConfig": "split",
    "Stage": "stage",
    "StockNetworks": "hf_networks",
    "TokenMergeConfig": "token_merge",
    "TokenizerViT": "vit_networks",
    "TowerConfig": "hf_encoder",
    "TowerOptions": "encoder_options",
    "UnifiedConfig": "unified",
    "VQConfig": "vq",
    "VideoConfig": "video",
    "ViTConfig": "vit",
}
"""The "kind" of saved JSON as versions before 0.2 wrote it, the name of a class -> its tag."""

FIELDS = {
    "stage": {
        "data": "objectives",
        "mix": "source_weights",
        "batch": "batch_tokens",  # or batch_images: batch_field
        "accumulate": "gradient_accumulation_steps",
        "warmup": "warmup_ratio",
        "floor": "min_lr_ratio",
        "cooldown": "decay_ratio",
        "normalise": "loss_reduction",
        "recompute": "gradient_checkpointing",
        "clip": "max_grad_norm",
        "best": "best_metric",
        "patches": "max_patches",
    },
    "ranks": {
        "shard": "fsdp_min_params",
        "replicas": "hsdp_replicas",
        "tensor": "tensor_parallel",
    },
    "recipe": {
        "shift": "augment.shift",
        "mirror": "augment.hflip",
        "questions": "questions_per_image",
        "keep": "keep_checkpoints",
        "sinks": "loggers",
    },
    "mllm": {
        "tower": "vision",
        "language": "language_model",
        "tokens": "extra_special_tokens",
        "images": "image_processing",
        "frozen_layers": "freeze_first_layers",
    },
    "unified": {
        "hidden": "intermediate_size",
        "width": "hidden_size",
        "tokens": "image_codes",
        "reordered": "post_norm",
        "mup_base": "mup_base_width",
        "share_codes": "factorized_code_embedding",
        "local_heads": "local_attention_init",
        "drop_condition": "cfg_dropout",
        "undrawn": "held_out_captions",
    },
    "autoencoder": {
        "detail": "edge_loss_weight",
        "caption": "caption_loss_weight",
        "features": "perceptual_encoder",
        "stock": "hf_networks",
        "words": "caption_vocab",
    },
}
"""Tag of a configuration -> its fields, old name -> new; a dot leads into a configuration."""

OBJECTIVES = {
    "converse": "chat",
    "describe": "caption",
    "match": "itm",
    "discern": "itm_hard",
    "spot": "word_match",
    "draw": "text_to_image",
    "words": "embed_align",
    "document": "interleaved",
}
"""Objectives in a stage's `objectives`, joined by "+"."""

GROUPS = {"adapter": "lora", "language": "language_model"}
"""Groups of a model's parameters, in a stage's `lr` and `groups` and in checkpoints."""

METRICS = {"of_achievable": "mfu_measured", "data_stall": "data_wait"}
"""Keys of metrics.jsonl."""

STATE = {"strands": "data_shards"}
"""Keys of a checkpoint's state.json."""

RESULTS = {"interval_by_picture": "interval_by_image", "pictures": "images"}
"""Keys of an evaluation's result and of the records of precomputed shards."""

FILES = {"ledger.json": "cost.json"}
"""Files of a run's folder."""

ROUTES = {"/v1/looks": "/v1/attributions"}
"""Routes of `chiasm serve`; the old one answers too."""

COMMANDS = {
    "draw": "generate",
    "duel": "isoflop",
    "merge": "merge-lora",
    "data shots": "data webpages",
    "data make": "data synthesize",
}
"""Commands of `chiasm`."""

OPTIONS = {
    "generate": {"--count": "--num-images", "--vary": "--strength"},
    "isoflop": {
        "--points": "--num-budgets",
        "--arms": "--models",
        "--questions": "--num-questions",
    },
    "serve": {
        "--slots": "--max-batch",
        "--waiting": "--max-queue",
        "--drain": "--shutdown-timeout",
        "--fetch": "--allow-image-host",
        "--key": "--api-key",
        "--weights": "--dtype",
    },
    "plan": {
        "--words": "--text-tokens",
        "--picture": "--image-size",
        "--pictures": "--images-per-sample",
    },
    "eval": {
        "--batch": "--batch-size",
        "--count": "--num-images",
        "--judge": "--clip-model",
        "--compat": "--match-harness",
    },
    "compare": {"--batch": "--batch-size"},
}
"""Command -> its options."""

_told: set[tuple[str, str]] = set()
_collected: list[str] | None = None


def fields(tag: str, body: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """The fields of a configuration, by the names that they have now; values that name an objective
    or a group of parameters too. where: how errors call it. Raises ConfigError for a field that is
    there by its old and its new name."""
    if tag == "recipe" and "stages" in body:
        body = {**body, "stages": _stages(body)}
    found: dict[str, Any] = {}
    for name, value in body.items():
        first, _, rest = field(tag, name, body).partition(".")
        if rest:
            beside = found.get(first) or body.get(first) or {}
            if not isinstance(beside, Mapping) or rest in beside:
                raise ConfigError(f"{where}: '{name}' is '{first}.{rest}' now; leave out '{name}'")
            value = {**beside, rest: value}
        elif first != name and first in body:
            raise ConfigError(f"{where}: '{name}' is called '{first}' now; leave out one of them")
        elif first in found:
            value = found[first]
        found[first] = value
    return {name: _value(tag, name, value) for name, value in found.items()}


def field(tag: str, name: str, body: Mapping[str, Any], model: str | None = None) -> str:
    """What one field of a configuration is called now. body: the fields beside it; model: the tag
    of the model that a stage trains, where it is known."""
    if (tag, name) == ("stage", "batch"):
        return renamed(name, batch_field(body, model))
    return renamed(name, FIELDS.get(tag, {}).get(name, name))


def batch_field(stage: Mapping[str, Any], model: str | None) -> str:
    """Which of its two successors the field `batch` of a stage was: contrastive encoders, image
    tokenizers and the objective embed_align count images, all others tokens."""
    objective = stage.get("objectives") or stage.get("data") or ""
    images = model in ("contrastive", "autoencoder") or objective in ("embed_align", "words")
    return "batch_images" if images else "batch_tokens"


def _stages(recipe: Mapping[str, Any]) -> Any:
    """A saved recipe's stages with the field `batch` by its name of now, for which a stage must
    know the model."""
    model, stages = recipe.get("model"), recipe["stages"]
    kind = model.get("kind") if isinstance(model, dict) else model
    tag = KINDS.get(kind, kind) if isinstance(kind, str) else None
    if not isinstance(stages, list):
        return stages
    return [
        {field("stage", k, s, tag) if k == "batch" else k: v for k, v in s.items()}
        if isinstance(s, dict) and not {"batch_tokens", "batch_images"} & s.keys()
        else s
        for s in stages
    ]


def group(name: str) -> str:
    """What a group of parameters is called now."""
    return renamed(name, GROUPS.get(name, name))


def keys(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A saved record (a line of metrics, a checkpoint's state) with its keys as they are called
    now; names: METRICS, STATE or RESULTS."""
    return {renamed(key, names.get(key, key)): value for key, value in record.items()}


def file_of(folder: Path, name: str) -> Path:
    """A file of a run's folder; the one of an earlier version's name where only that is there."""
    for old, new in FILES.items():
        if new == name and not (folder / new).exists() and (folder / old).exists():
            renamed(old, new)
            return folder / old
    return folder / name


def arguments(given: Sequence[str]) -> list[str]:
    """Arguments of the program with its commands and options as they are called now."""
    with one_warning():
        words = list(given)
        for old, new in COMMANDS.items():
            length = len(old.split())
            if words[:length] == old.split():
                words[:length] = renamed(old, new).split()
                break
        options = OPTIONS.get(words[0], {}) if words else {}
        for i, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name in options:
                words[i] = f"{renamed(name, options[name])}{equals}{value}"
        return words


def _value(tag: str, name: str, value: Any) -> Any:
    if tag == "stage" and name == "objectives" and isinstance(value, str):
        parts = value.split("+")
        return "+".join(renamed(part, OBJECTIVES.get(part, part)) for part in parts)
    if tag == "stage" and name in ("lr", "groups") and isinstance(value, dict):
        return {group(key): setting for key, setting in value.items()}
    return value


def renamed(old: str, new: str) -> str:
    """`new`; where it differs from `old`, this is told, once for each name."""
    if old != new and (old, new) not in _told:
        _told.add((old, new))
        line = f"'{old}' is called '{new}' now"
        if _collected is None:
            _warn([line])
        else:
            _collected.append(line)
    return new


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """What is told inside is told in a single warning at the end."""
    global _collected
    if _collected is not None:
        yield
        return
    _collected = []
    try:
        yield
    finally:
        lines, _collected = _collected, None
        if lines:
            _warn(lines)


def _warn(lines: Sequence[str]) -> None:
    warnings.warn(
        f"{', '.join(lines)}; the old names keep working",
        RenamedWarning,
        stacklevel=3,
    )
