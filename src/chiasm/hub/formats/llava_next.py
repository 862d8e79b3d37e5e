"""LLaVA-NeXT (its authors' note of January 2024) as transformers publishes it: LLaVA with tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chiasm.data.processor import Processor
from chiasm.hub.formats.format import Target
from chiasm.hub.formats.llava_family import (
    NAMES,
    family_config,
    family_obstacles,
    load_family,
    write_family,
)
from chiasm.hub.formats.parity import compare
from chiasm.hub.formats.stock import read_stock
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import AnyResConfig
from chiasm.mllm.images.anyres import AnyResMode
from chiasm.mllm.model import MLLM

CLASS = "LlavaNextForConditionalGeneration"


class LlavaNextFormat:
    name = "LLaVA-NeXT"
    target: Target = "hf"
    names = NAMES

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "llava_next"

    def load(self, folder: Path) -> tuple[MLLM, Processor]:
        stock = read_stock(folder)
        pinpoints = tuple((h, w) for h, w in stock.config.image_grid_pinpoints)
        return load_family(stock, AnyResConfig(pinpoints))

    def obstacles(self, model: MLLM, processor: Processor) -> list[str]:
        found = family_obstacles(model, processor, (AnyResConfig,), "AnyResConfig")
        if model.vision.config.class_token:
            found.append("class tokens among the features (model.vision.class_token)")
        return found

    def export(self, model: MLLM, processor: Processor, folder: Path) -> None:
        codec = processor.codec
        assert isinstance(codec, MLLMCodec)
        assert isinstance(codec.mode, AnyResMode)
        pinpoints = [list(choice) for choice in codec.mode.choices]
        config = family_config(model, processor, CLASS, "llava_next")
        config["image_grid_pinpoints"] = pinpoints
        side = codec.mode.side
        images = {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "image_grid_pinpoints": pinpoints,
            "do_pad": True,
        }
        write_family(folder, model, processor, config, "LlavaNextProcessor", images)

    def verify(self, model: MLLM, processor: Processor, folder: Path) -> str:
        return compare(model, processor, folder)
