"""PaliGemma 1 and 2 (2407.07726, 2412.03555) as transformers publishes them: SigLIP with its last
norm, one linear layer, Gemma; the prompt sees itself whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from chiasm.data.chat import PALIGEMMA
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub.formats.files import (
    image_settings,
    language_tensors,
    text_config,
    write_config,
    write_processor,
    write_weights,
)
from chiasm.hub.formats.format import Names, Target
from chiasm.hub.formats.llava import shown
from chiasm.hub.formats.llava_family import language_obstacles
from chiasm.hub.formats.parity import compare
from chiasm.hub.formats.stock import read_stock, take_apart
from chiasm.hub.formats.vision import SIGLIP, vision_obstacles, vision_parts
from chiasm.hub.mllm import stop_ids
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import LinearConfig, MLLMConfig, ResizeConfig
from chiasm.mllm.model import MLLM
from chiasm.vision.config import FusedConfig, TowerConfig, TowerOptions

CLASS = "PaliGemmaForConditionalGeneration"
GEMMAS = ("gemma", "gemma2")

# What the processor itself does not write: it puts the beginning behind the images and ends the
# prompt with a new line.
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}"
    "{% endif %}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
)


class PaliGemmaFormat:
    name = "PaliGemma"
    target: Target = "hf"
    names: ClassVar[Names] = {
        "language.model.": "model.language_model.",
        "language.lm_head.": "lm_head.",
        "vision.model.": "model.vision_tower.",
        "projector.linear.": "model.multi_modal_projector.linear.",
    }

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "paligemma"

    def load(self, folder: Path) -> tuple[MLLM, Processor]:
        stock = read_stock(folder)
        text = stock.model.model.language_model.config
        # Who sees whom is said by the batch here; the flag would make a lone text see its future.
        text.use_bidirectional_attention = False
        tower = TowerOptions(layer=-1, norm=True)
        config = MLLMConfig(
            encoder=str(folder),
            language_model=str(folder),
            projector=LinearConfig(zero_init=True),
            lora=None,
            attention="prefix",
            max_length=text.max_position_embeddings,
            vision=tower,
            image_processing=shown(stock),
        )
        stock.tokenizer.chat_template = PALIGEMMA
        template = ChatTemplate(stock.tokenizer, stock.image, stop=stop_ids(stock.model))
        model, processor = take_apart(stock, config, tower, template)
        model.projector.load_state_dict(stock.model.model.multi_modal_projector.state_dict())
        return model, processor

    def obstacles(self, model: MLLM, processor: Processor) -> list[str]:
        found = vision_obstacles(model.vision, (SIGLIP,))
        vision, language = model.vision.config, model.language
        last = (len(model.vision.layers),)
        if isinstance(vision, TowerConfig) and not vision.norm:
            found.append("features without the encoder's last norm (set model.vision.norm)")
        if not isinstance(vision, FusedConfig) and vision.chosen not in ((), last):
            found.append(f"features of the encoder's layers {vision.chosen} (it must be the last)")
        if not isinstance(model.projector.config, LinearConfig):
            found.append(f"the projector {model.projector.config} (it must be LinearConfig)")
        codec, template = processor.codec, processor.template
        assert isinstance(codec, MLLMCodec)
        assert isinstance(template, ChatTemplate)
        if not isinstance(codec.images, ResizeConfig):
            found.append(f"images shown by {type(codec.images).__name__} (it must be ResizeConfig)")
        if not processor.prefix:
            found.append("causal attention (it must be prefix: model.attention)")
        if language.config.model_type not in GEMMAS:
            found.append(f"a language model '{language.config.model_type}' (only Gemma 1 and 2)")
        if model.head.weight is not language.get_input_embeddings().weight:
            found.append("a head of its own (it must be the embedding)")
        if template.tokenizer.chat_template != PALIGEMMA or template.system is not None:
            found.append("another chat template (set model.chat_template to paligemma)")
        return found + language_obstacles(model, capped=True)

    def export(self, model: MLLM, processor: Processor, folder: Path) -> None:
        template = processor.template
        assert isinstance(template, ChatTemplate)
        dtype, rows = model.language.config.dtype, len(template.tokenizer)
        write_weights(folder, _tensors(model, rows), dtype)
        write_config(folder, _config(model, rows), dtype, model)
        tower = model.vision.config
        side = tower.image_size
        images = {
            **image_settings(tower),
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side},
            "image_seq_length": (side // tower.patch_size) ** 2,
        }
        write_processor(folder, "PaliGemmaProcessor", {}, images, template.tokenizer, PARTS)

    def verify(self, model: MLLM, processor: Processor, folder: Path) -> str:
        return compare(model, processor, folder)


def _tensors(model: MLLM, rows: int) -> dict[str, Tensor]:
    body, _ = language_tensors(model, rows)
    _, vision = vision_parts(model.vision)
    parts = {
        "language_model.model": body,
        "vision_tower.vision_model": vision,
        "multi_modal_projector": model.projector.state_dict(),
    }
    return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}


def _config(model: MLLM, rows: int) -> dict[str, Any]:
    vision, _ = vision_parts(model.vision)
    text, language = text_config(model, rows), model.language.config
    text.pop("use_bidirectional_attention", None)  # PaliGemma's own default is what it means
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "architectures": [CLASS],
        "model_type": "paligemma",
        "image_token_index": model.image_token,
        "hidden_size": language.hidden_size,
        "projection_dim": language.hidden_size,
        "vocab_size": text["vocab_size"],
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": {**vision, "projection_dim": language.hidden_size},
        **{name: getattr(language, name, None) for name in ids},
    }
