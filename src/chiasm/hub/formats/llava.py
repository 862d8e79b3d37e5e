"""LLaVA 1.5 (2310.03744) as transformers publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chiasm.core.errors import CheckpointError
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
from chiasm.hub.formats.stock import Stock, read_stock
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import CropConfig, ImagesConfig, PadConfig, ResizeConfig
from chiasm.mllm.model import MLLM

CLASS = "LlavaForConditionalGeneration"


class LlavaFormat:
    name = "LLaVA"
    target: Target = "hf"
    names = NAMES

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "llava"

    def load(self, folder: Path) -> tuple[MLLM, Processor]:
        stock = read_stock(folder)
        return load_family(stock, shown(stock))

    def obstacles(self, model: MLLM, processor: Processor) -> list[str]:
        modes = (ResizeConfig, PadConfig, CropConfig)
        return family_obstacles(model, processor, modes, "ResizeConfig, PadConfig or CropConfig")

    def export(self, model: MLLM, processor: Processor, folder: Path) -> None:
        config = family_config(model, processor, CLASS, "llava")
        codec = processor.codec
        assert isinstance(codec, MLLMCodec)
        images = image_files(codec.images, model.vision.config.image_size)
        write_family(folder, model, processor, config, "LlavaProcessor", images)

    def verify(self, model: MLLM, processor: Processor, folder: Path) -> str:
        return compare(model, processor, folder)


def shown(stock: Stock) -> ImagesConfig:
    """How a folder's image processor shows images. Raises CheckpointError where its sizes are not
    the encoder's."""
    told, side = stock.images, stock.config.vision_config.image_size
    size = dict(told.size)
    crops = bool(getattr(told, "do_center_crop", False))
    pads = bool(getattr(told, "do_pad", False))
    squeezed = size.get("height") == size.get("width") == side
    shorter = size.get("shortest_edge") == side
    if crops and dict(told.crop_size) != {"height": side, "width": side}:
        raise _unlike(stock, f"crops to {dict(told.crop_size)}", side)
    if pads and (squeezed or shorter):
        return PadConfig()
    if squeezed:
        return ResizeConfig()
    if crops and shorter:
        return CropConfig()
    raise _unlike(stock, f"resizes to {size}", side)


def image_files(images: ImagesConfig, side: int) -> dict[str, Any]:
    """The image processor that does as `images` says."""
    square = {"height": side, "width": side}
    if isinstance(images, CropConfig):
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": square,
        }
    if isinstance(images, PadConfig):
        return {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": True,
            "size": square,
            "do_center_crop": False,
        }
    return {"image_processor_type": "SiglipImageProcessor", "size": square}


def _unlike(stock: Stock, what: str, side: int) -> CheckpointError:
    return CheckpointError(
        f"{stock.folder}: its image processor {what}, but the encoder takes {side} x {side} pixels"
    )
