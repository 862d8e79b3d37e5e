"""What LLaVA 1.5 and LLaVA-NeXT share: CLIP or SigLIP without its last norm, two linear layers with
GELU between, any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from chiasm.core.errors import CheckpointError
from chiasm.data.chat import VICUNA
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate, content_of, template_class
from chiasm.hub.formats.files import (
    chat_template_for_parts,
    image_settings,
    language_tensors,
    text_config,
    write_config,
    write_processor,
    write_weights,
)
from chiasm.hub.formats.format import Names
from chiasm.hub.formats.stock import Stock, chat_template_of, take_apart
from chiasm.hub.formats.vision import (
    CLIP,
    PLACED,
    SIGLIP,
    feature_layers,
    vision_obstacles,
    vision_parts,
)
from chiasm.hub.mllm import stop_ids
from chiasm.mllm.adapter import adapters_of
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import ImagesConfig, MLLMConfig, MLPConfig
from chiasm.mllm.model import MLLM
from chiasm.vision.config import TowerConfig, TowerOptions, ViTConfig

NAMES: Names = {
    "language.model.": "model.language_model.",
    "language.lm_head.": "lm_head.",
    "vision.model.": "model.vision_tower.",
    "projector.layers.0.": "model.multi_modal_projector.linear_1.",
    "projector.layers.1.": "model.multi_modal_projector.linear_2.",
    "projector.image_newline": "model.image_newline",
}


def load_family(stock: Stock, images: ImagesConfig) -> tuple[MLLM, Processor]:
    """The model of a LLaVA checkpoint. Raises CheckpointError for variants of it that no published
    checkpoint uses."""
    c, source = stock.config, stock.folder / "config.json"
    family = c.vision_config.model_type
    if family not in PLACED:
        raise CheckpointError(f"{source}: a vision tower '{family}', expected {', '.join(PLACED)}")
    if c.projector_hidden_act != "gelu" or not c.multimodal_projector_bias:
        raise CheckpointError(
            f"{source}: a projector with {c.projector_hidden_act} and biases "
            f"{c.multimodal_projector_bias}; expected gelu with biases"
        )
    whole = c.vision_feature_select_strategy == "full"
    if not whole and not PLACED[family]:
        raise CheckpointError(
            f"{source}: vision_feature_select_strategy 'default' would drop a patch of a "
            f"'{family}', which has no class token; set it to 'full'"
        )
    layer = c.vision_feature_layer
    tower = TowerOptions(
        layer if isinstance(layer, int) else tuple(layer), class_token=whole and family == CLIP
    )
    config = MLLMConfig(
        encoder=str(stock.folder),
        language_model=str(stock.folder),
        projector=MLPConfig(merge=1),
        lora=None,
        max_length=getattr(c.text_config, "max_position_embeddings", 2048),
        vision=tower,
        image_processing=images,
    )
    model, processor = take_apart(stock, config, tower, template_of(stock))
    state = {
        f"layers.{int(name[7]) - 1}{name[8:]}": value
        for name, value in stock.model.model.multi_modal_projector.state_dict().items()
    }
    if model.projector.image_newline is not None:
        state["image_newline"] = stock.model.model.image_newline.detach()
    model.projector.load_state_dict(state)
    return model, processor


def template_of(stock: Stock) -> ChatTemplate:
    """The checkpoint's own chat template, told parts or text, whichever it puts images in;
    LLaVA's where it has none."""
    words, image = stock.tokenizer, stock.image
    words.chat_template = chat_template_of(stock.folder) or words.chat_template or VICUNA
    kind = template_class(content_of(words, image))
    return kind(words, image, stop=stop_ids(stock.model))


def family_obstacles(
    model: MLLM, processor: Processor, modes: Sequence[type], shown: str
) -> list[str]:
    """What LLaVA cannot say of a model; modes: the ways of showing images that it can, in
    words."""
    found = vision_obstacles(model.vision, (CLIP, SIGLIP))
    tower, language = model.vision.config, model.language
    if isinstance(tower, ViTConfig) and not found:
        found.append("the last norm of chiasm's own encoder (LLaVA takes features before it)")
    if isinstance(tower, TowerConfig) and tower.norm:
        found.append("the encoder's last norm over the features (model.vision.norm)")
    plain = MLPConfig(merge=1)
    projector = model.projector.config
    if not isinstance(projector, MLPConfig) or (projector.layers, projector.merge) != (2, 1):
        found.append(f"the projector {projector} (it must be {plain})")
    elif projector.hidden not in (0, language.config.hidden_size):
        found.append(f"a projector of hidden width {projector.hidden} (the language model's)")
    codec = processor.codec
    assert isinstance(codec, MLLMCodec)
    if not isinstance(codec.images, tuple(modes)):
        found.append(f"images shown by {type(codec.images).__name__} (it must be {shown})")
    if processor.prefix:
        found.append("prefix-LM attention (model.attention)")
    return found + language_obstacles(model, capped=False)


def language_obstacles(model: MLLM, capped: bool) -> list[str]:
    """What no layout with transformers' plain head can say; capped: it can cap logits."""
    found = []
    if adapters_of(model.language):
        found.append("LoRA adapters apart from their matrices (run chiasm merge-lora RUN OUT)")
    if getattr(model.head, "bias", None) is not None:
        found.append("a bias in the language model's head")
    config = model.language.config
    scaled = [
        name
        for name in ("logit_scale", "logits_scaling")
        if getattr(config, name, 1.0) not in (None, 1.0)
    ]
    if not capped and getattr(config, "final_logit_softcapping", None) is not None:
        scaled.append("final_logit_softcapping")
    return found + [f"{name} of the language model's logits" for name in scaled]


def family_config(model: MLLM, processor: Processor, kind: str, name: str) -> dict[str, Any]:
    """config.json of class `kind`."""
    vision, _ = vision_parts(model.vision)
    tower = _tower(model)
    side = tower.image_size // tower.patch_size
    rows = _rows(model, processor)
    text = text_config(model, rows)
    return {
        "architectures": [kind],
        "model_type": name,
        "image_token_index": model.image_token,
        "image_seq_length": side**2 + tower.class_token,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": feature_layers(tower, len(model.vision.layers)),
        "vision_feature_select_strategy": _strategy(model),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": vision,
    }


def write_family(
    folder: Any,
    model: MLLM,
    processor: Processor,
    config: dict[str, Any],
    kind: str,
    images: dict[str, Any],
) -> None:
    """All files; images: what the image processor is told beside what all are."""
    dtype = model.language.config.dtype
    write_weights(folder, _tensors(model, processor), dtype)
    write_config(folder, config, dtype, model)
    template = processor.template
    assert isinstance(template, ChatTemplate)
    tower = _tower(model)
    own = {
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": _strategy(model),
        "num_additional_image_tokens": PLACED[tower.family],
        "image_token": template.image,
    }
    images = {**image_settings(tower), **images}
    write_processor(
        folder, kind, own, images, template.tokenizer, chat_template_for_parts(template)
    )


def _tower(model: MLLM) -> TowerConfig:
    """Of a model without obstacles."""
    assert isinstance(model.vision.config, TowerConfig)
    return model.vision.config


def _strategy(model: MLLM) -> str:
    tower = _tower(model)
    return "full" if tower.class_token or not PLACED[tower.family] else "default"


def _tensors(model: MLLM, processor: Processor) -> dict[str, Tensor]:
    body, head = language_tensors(model, _rows(model, processor))
    _, vision = vision_parts(model.vision)
    tensors = {f"language_model.model.{name}": value for name, value in body.items()}
    if head is not None:
        tensors["language_model.lm_head.weight"] = head
    tensors |= {f"vision_tower.vision_model.{name}": value for name, value in vision.items()}
    for number, layer in enumerate(model.projector.layers, 1):  # type: ignore[arg-type]
        for name, value in layer.state_dict().items():
            tensors[f"multi_modal_projector.linear_{number}.{name}"] = value
    if model.projector.image_newline is not None:
        tensors["image_newline"] = model.projector.image_newline
    return tensors


def _rows(model: MLLM, processor: Processor) -> int:
    """Words that the tables must have a row for: those of the tokenizer."""
    template = processor.template
    assert isinstance(template, ChatTemplate)
    return len(template.tokenizer)
