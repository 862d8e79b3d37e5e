"""Contrastive models of either origin behind two calls: images and texts to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core.device import model_device, resolve
from chiasm.core.errors import CheckpointError
from chiasm.core.hf_tokenizer import load_hf_tokenizer
from chiasm.core.quiet import quiet

KINDS = ("clip", "siglip", "siglip2")


class Dual(Protocol):
    """Embeds images and texts so that a text is near the images it describes."""

    def embed_images(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """Unit vectors [N D], in main memory."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [M D], in main memory."""
        ...


class OwnDual:
    """A DualEncoder of ours with its image processor."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def embed_images(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        patches, grids = self.processor.images(images)
        return self.model.embed_images(patches.to(model_device(self.model)), grids).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        device = model_device(self.model)
        return self.model.embed_texts(*(t.to(device) for t in self.processor.texts(texts))).cpu()


class StockDual:
    """CLIP, SigLIP or SigLIP 2 of transformers with its own image processor and tokenizer."""

    def __init__(self, model: Any, images: Any, tokenizer: Any):
        self.model, self.images, self.tokenizer = model.eval(), images, tokenizer

    @torch.inference_mode()
    def embed_images(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        inputs = self.images(images=[p.convert("RGB") for p in images], return_tensors="pt")
        inputs = {name: t.to(self.model.device) for name, t in inputs.items()}
        return _unit(self.model.get_image_features(**inputs))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        # SigLIP was trained on texts filled up to the full length and reads the last token of it.
        own = self.model.config.text_config
        clip = self.model.config.model_type == "clip"
        inputs = self.tokenizer(
            list(texts),
            padding=True if clip else "max_length",
            max_length=own.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        names = [k for k in ("input_ids", "attention_mask") if k in inputs]
        known = {name: inputs[name].to(self.model.device) for name in names}
        if not clip:
            known.pop("attention_mask", None)  # the padding is part of what SigLIP reads
        return _unit(self.model.get_text_features(**known))


def load_stock_dual(source: str, device: str | torch.device | None = None) -> StockDual:
    """A hub id or a folder in transformers' format with both towers, on a device as
    core.device.resolve takes it. Raises CheckpointError."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    with quiet():
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.model_type not in KINDS:
                raise CheckpointError(
                    f"{source}: a '{config.model_type}', expected one with a text tower "
                    f"({', '.join(KINDS)}) or a folder of 'chiasm train encoder'"
                )
            model, report = AutoModel.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            images = AutoImageProcessor.from_pretrained(source, backend="pil")
            tokenizer = load_hf_tokenizer(source)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{source}: no contrastive model that transformers can load ({reason})"
            ) from None
    if report["missing_keys"]:
        raise CheckpointError(
            f"{source}: {len(report['missing_keys'])} weights are not in it, "
            f"first {sorted(report['missing_keys'])[0]}; was it saved whole?"
        )
    return StockDual(model.to(resolve(device)), images, tokenizer)


def _unit(features: Any) -> Tensor:
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(pooled, dim=-1).cpu()
