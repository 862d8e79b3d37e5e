"""Idefics3 (2408.12637) and SmolVLM (2504.05299) as transformers publishes them: SigLIP with its
last norm on tiles, pixel shuffle, one linear layer, any causal language model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from chiasm.core.errors import CheckpointError
from chiasm.core.hf_tokenizer import load_hf_tokenizer
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub.formats.files import (
    chat_template_for_parts,
    image_settings,
    language_tensors,
    text_config,
    write_config,
    write_processor,
    write_weights,
)
from chiasm.hub.formats.format import Names, Target
from chiasm.hub.formats.llava_family import language_obstacles, template_of
from chiasm.hub.formats.parity import compare
from chiasm.hub.formats.stock import Stock, chat_template_of, read_stock, take_apart
from chiasm.hub.formats.vision import SIGLIP, vision_obstacles, vision_parts
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLLMConfig, PixelShuffleConfig, SplitConfig
from chiasm.mllm.images.split import IMAGE, SplitMode
from chiasm.mllm.model import MLLM
from chiasm.train.checkpoint import read_json
from chiasm.vision.config import FusedConfig, TowerOptions
from chiasm.vision.pretrained import Tower

END = "<end_of_utterance>"
"""A word that transformers' processors add to a tokenizer without it."""

SEEN = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What their vision configuration shares with SigLIP's."""


@dataclass(frozen=True)
class Idefics3Format:
    """Of the two names for one layout. own: the family of encoders (vision/pretrained.py) that only
    this name has; kind: begins the names of transformers' classes."""

    name: str = "Idefics3"
    kind: str = "Idefics3"
    model_type: str = "idefics3"
    own: str = "idefics3_vision"
    target: Target = "hf"
    names: ClassVar[Names] = {
        "language.model.": "model.text_model.",
        "language.lm_head.": "lm_head.",
        "vision.model.": "model.vision_model.",
        "projector.proj.": "model.connector.modality_projection.proj.",
    }

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == self.model_type

    def load(self, folder: Path) -> tuple[MLLM, Processor]:
        stock = read_stock(folder)
        config = MLLMConfig(
            encoder=str(folder),
            language_model=str(folder),
            projector=PixelShuffleConfig(stock.config.scale_factor),
            lora=None,
            max_length=getattr(stock.config.text_config, "max_position_embeddings", 2048),
            vision=TowerOptions(layer=-1, norm=True),
            image_processing=_shown(stock),
        )
        model, processor = take_apart(stock, config, config.vision, template_of(stock))
        connector = stock.model.model.connector.modality_projection
        model.projector.load_state_dict(connector.state_dict())
        return model, processor

    def obstacles(self, model: MLLM, processor: Processor) -> list[str]:
        found = vision_obstacles(model.vision, (SIGLIP, self.own))
        vision, projector = model.vision.config, model.projector.config
        codec, template = processor.codec, processor.template
        assert isinstance(codec, MLLMCodec)
        assert isinstance(template, ChatTemplate)
        if isinstance(model.vision, Tower) and not model.vision.config.norm:
            found.append("features without the encoder's last norm (set model.vision.norm)")
        last: tuple[tuple[int, ...], ...] = ((), (len(model.vision.layers),))
        if not (found or isinstance(vision, FusedConfig) or vision.chosen in last):
            found.append(f"features of the encoder's layers {vision.chosen} (it must be the last)")
        side = vision.image_size // vision.patch_size
        if not positions_kept(side) and not _is_own(model, self.own):
            found.append(f"positions of {side} x {side} patches, which it would number otherwise")
        if not isinstance(projector, PixelShuffleConfig):
            found.append(f"the projector {projector} (it must be PixelShuffleConfig)")
        elif side % projector.factor:
            found.append(f"{side} x {side} patches, which {projector.factor} does not divide")
        if not isinstance(codec.mode, SplitMode):
            found.append(f"images shown by {type(codec.images).__name__} (it must be SplitConfig)")
        elif codec.mode.tile != vision.image_size:
            found.append(
                f"tiles of {codec.mode.tile} pixels (the encoder was trained at "
                f"{vision.image_size}; set model.image_processing.max_image_size)"
            )
        if processor.prefix:
            found.append("prefix-LM attention (model.attention)")
        if template.image != IMAGE:
            found.append(f"images called {template.image} (its processor knows {IMAGE})")
        return found + language_obstacles(model, capped=False)

    def export(self, model: MLLM, processor: Processor, folder: Path) -> None:
        template, codec = processor.template, processor.codec
        assert isinstance(template, ChatTemplate)
        assert isinstance(codec, MLLMCodec)
        assert isinstance(codec.mode, SplitMode)
        dtype, tower, mode = model.language.config.dtype, model.vision.config, codec.mode
        words = copy.deepcopy(template.tokenizer)
        words.add_tokens([END], special_tokens=True)
        rows = len(words)
        write_weights(folder, tensors(model, rows), dtype)
        write_config(folder, self._config(model, rows, words), dtype, model)
        images = {
            **image_settings(tower),
            "image_processor_type": f"{self.kind}ImageProcessor",
            "size": {"longest_edge": mode.longest},
            "max_image_size": {"longest_edge": mode.tile},
            "do_image_splitting": mode.splits,
            "do_pad": True,
        }
        if self.own == "smolvlm_vision":  # its processor wants to know of videos
            sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": mode.tile}}
            images["video_sampling"] = sampling
        own = {"image_seq_len": mode.tokens(mode.grid(mode.tile, mode.tile))}
        chat = chat_template_for_parts(template)
        write_processor(folder, f"{self.kind}Processor", own, images, words, chat)

    def verify(self, model: MLLM, processor: Processor, folder: Path) -> str:
        return compare(model, processor, folder, reader(folder))

    def _config(self, model: MLLM, rows: int, words: Any) -> dict[str, Any]:
        vision, _ = vision_parts(model.vision)
        text = text_config(model, rows)
        return {
            "architectures": [f"{self.kind}ForConditionalGeneration"],
            "model_type": self.model_type,
            "image_token_id": model.image_token,
            "scale_factor": model.projector.config.factor,
            "tie_word_embeddings": text["tie_word_embeddings"],
            "pad_token_id": words.pad_token_id if words.pad_token_id is not None else 0,
            "text_config": text,
            "vision_config": {
                **{name: vision[name] for name in SEEN if name in vision},
                "model_type": self.own,
            },
        }


def tensors(model: MLLM, rows: int) -> dict[str, Tensor]:
    """Everything under its published name; the tables with at least `rows` words."""
    body, head = language_tensors(model, rows)
    _, vision = vision_parts(model.vision)
    named = {f"model.text_model.{name}": value for name, value in body.items()}
    named |= {f"model.vision_model.{name}": value for name, value in vision.items()}
    connector = model.projector.get_parameter("proj.weight")
    named["model.connector.modality_projection.proj.weight"] = connector
    return named if head is None else named | {"lm_head.weight": head}


def positions_kept(side: int) -> bool:
    """Whether their encoder, which finds a patch's row by comparing fractions in single precision,
    finds row i of `side` at i: roundings may say i - 1."""
    edges = torch.arange(1 / side, 1.0, 1 / side)
    rows = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    found = torch.bucketize(rows.clamp(max=1.0 - 1e-6), edges, right=True)
    return torch.equal(found, torch.arange(side))


def reader(folder: Path) -> Any:
    """transformers' processor of Idefics3 for a folder of either name: SmolVLM's own asks for
    packages that only clips need, and does the same to images and their words."""
    from transformers import AutoImageProcessor, Idefics3Processor

    return Idefics3Processor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        load_hf_tokenizer(folder),
        image_seq_len=read_json(folder / "processor_config.json")["image_seq_len"],
        chat_template=chat_template_of(folder),
    )


def _is_own(model: MLLM, family: str) -> bool:
    return isinstance(model.vision, Tower) and model.vision.config.family == family


def _shown(stock: Stock) -> SplitConfig:
    """How a folder's image processor shows images. Raises CheckpointError where the sizes do not
    say it."""
    told = stock.images
    longest, tile = (dict(size).get("longest_edge") for size in (told.size, told.max_image_size))
    if longest is None or tile is None:
        raise CheckpointError(
            f"{stock.folder}: its image processor resizes to {dict(told.size)} and tiles of "
            f"{dict(told.max_image_size)}; expected a longest_edge of both"
        )
    return SplitConfig(longest, tile, bool(told.do_image_splitting))


IDEFICS3 = Idefics3Format()
SMOLVLM = Idefics3Format("SmolVLM", "SmolVLM", "smolvlm", "smolvlm_vision")
