"""Training that begins with a trained model (`--init`): which configuration it then has.

The model named by the recipe's `init` gives weights, tokenizer, chat template, image processing and
configuration. The recipe gives what is trained and how: the fields in OF_TRAINING are always its
own, others only where `init_overrides` names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from chiasm.core.config import nearest
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.hub.generic import is_generic
from chiasm.hub.load import layout_of, load_as
from chiasm.hub.source import local_folder
from chiasm.mllm.config import MLLMConfig
from chiasm.recipes.recipe import Recipe
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig

M = TypeVar("M")
C = TypeVar("C")

OF_TRAINING: dict[type, tuple[str, ...]] = {
    MLLMConfig: ("lora", "freeze_first_layers"),
    UnifiedConfig: (
        "image_codes", "z_loss", "dropout", "image_weight", "factorized_code_embedding",
        "local_attention_init", "cfg_dropout", "held_out_captions",
    ),
    ContrastiveConfig: ("shift", "mirror"),
    AutoencoderConfig: (
        "pixel_loss", "edge_loss_weight", "perceptual", "perceptual_encoder", "adversarial",
        "adversarial_start", "caption_loss_weight", "caption_vocab", "usage_floor", "shift",
        "mirror",
    ),
}  # fmt: skip
"""Fields of a model's configuration that say how it is trained, not what it computes."""

REPLACEABLE: dict[type, tuple[str, ...]] = {
    MLLMConfig: tuple(f.name for f in fields(MLLMConfig)),
    UnifiedConfig: ("max_length", "video"),
    ContrastiveConfig: ("loss",),
    AutoencoderConfig: (),
}
"""Other fields that a recipe may set for a model whose weights it takes over."""


def initial_model(recipe: Recipe, kind: type[M]) -> tuple[M, Any]:
    """(model, processor) that the recipe's `init` names, on the CPU. Raises CheckpointError where
    there is none, or one of another kind."""
    folder = local_folder(recipe.init)
    if not (folder / "model.json").exists() and layout_of(folder) is None and is_generic(folder):
        raise CheckpointError(
            f"--init {recipe.init}: a type that runs by its own class, which is asked and "
            "evaluated but not trained here; give one of the layouts in docs/models.md"
        )
    return load_as(folder, kind, "--init", "cpu")


def initial_config(recipe: Recipe, saved: C) -> C:
    """The configuration that training from a model with the configuration `saved` has.

    Raises ConfigError for an override that another model, not this one's weights, would need.
    """
    kind = type(saved)
    own, free = OF_TRAINING[kind], REPLACEABLE[kind]
    for name in recipe.init_overrides:
        if name not in {*own, *free}:
            known = ", ".join(free) or "none"
            raise ConfigError(
                f"model.{name}: the weights of {recipe.init} are of another shape or kind; leave "
                f"it out (beside --init can be set: {known}; and of training: {', '.join(own)})"
                f"{nearest(name, [*own, *free])}"
            )
    taken = [*own, *recipe.init_overrides]
    return replace(saved, **{name: getattr(recipe.model, name) for name in taken})  # type: ignore[type-var]


def note_of(recipe: Recipe, kept: Sequence[str], fresh: Sequence[str] = ()) -> str:
    """A line that says what training begins with; empty without an `init`."""
    if not recipe.init:
        return ""
    own = OF_TRAINING[type(recipe.model)]
    changed = [name for name in recipe.init_overrides if name not in own]
    parts = [f"{recipe.init}: kept {', '.join(kept)}"]
    if changed:
        parts.append(f"set anew: {', '.join(f'model.{name}' for name in changed)}")
    if fresh:
        parts.append(f"fresh: {', '.join(fresh)}")
    return "; ".join(parts)
