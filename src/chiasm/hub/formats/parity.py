"""Our model and the checkpoint it was exported to, asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from chiasm.core.batch import pack
from chiasm.core.device import model_device
from chiasm.core.errors import CheckpointError
from chiasm.core.quiet import quiet
from chiasm.core.sample import Image, Sample, user
from chiasm.data.processor import Processor
from chiasm.hub.formats.stock import read_model
from chiasm.mllm.model import MLLM

QUESTION = "What is in the picture?"
TOLERANCE = 1e-4
LEVELS = 2
"""Of 255, by which the pixels of torchvision and of Pillow may be apart after resizing."""


@torch.no_grad()
def compare(model: MLLM, processor: Processor, folder: Path, reader: Any = None) -> str:
    """Ask a folder's model about an image through transformers alone (its processor, its chat
    template, its class) and ours through our processor: the prompt must be the same, and the logits
    of every token, on Pillow's pixels, equal within TOLERANCE of the largest. What transformers
    takes by itself (torchvision, where it is installed) may resize to pixels LEVELS apart. reader:
    transformers' processor, where it would choose another. Raises CheckpointError where they are
    not."""
    from transformers import AutoProcessor

    theirs = read_model(folder)
    image, usual = _image(), reader
    if reader is None:
        with quiet():
            usual = AutoProcessor.from_pretrained(folder)
            reader = AutoProcessor.from_pretrained(folder, backend="pil")
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = reader.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    bos = reader.tokenizer.bos_token
    given = {
        "images": [image],
        "text": text,
        "add_special_tokens": not (bos and text.startswith(bos)),
        "return_tensors": "pt",
    }
    inputs = reader(**given)
    inputs.pop("labels", None)
    if usual is not reader:
        _same_pixels(folder, inputs, usual(**given), reader.image_processor.image_std)
    asked = processor.prompts([Sample((user(Image(image), QUESTION),))])[0][0]
    if asked.input_ids.tolist() != inputs["input_ids"][0].tolist():
        raise CheckpointError(
            f"{folder}: transformers reads a prompt of {inputs['input_ids'].shape[1]} tokens where "
            f"this model was given {len(asked.input_ids)}; its processor files do not say the same"
        )
    device = model_device(model)
    ours = model.logits(model(pack([[asked]]).to(device))).cpu().float()
    found = theirs(**inputs, use_cache=False).logits[..., : ours.shape[-1]]
    largest = found.abs().max().item()
    apart = (ours - found).abs().max().item()
    if not apart <= TOLERANCE * max(1.0, largest):
        raise CheckpointError(
            f"{folder}: transformers' logits differ by up to {apart:.2g} (largest {largest:.3g}); "
            "the export is wrong"
        )
    return (
        f"read back with transformers: the same {len(asked.input_ids)} tokens, logits apart by "
        f"at most {apart:.1e} (largest {largest:.3g})"
    )


def _same_pixels(folder: Path, pillow: Any, usual: Any, deviation: Sequence[float]) -> None:
    """Raises CheckpointError where a processor's pixels are not Pillow's within LEVELS."""
    ours, theirs = (torch.as_tensor(inputs["pixel_values"]) for inputs in (pillow, usual))
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"{folder}: transformers' processor makes pixels {tuple(theirs.shape)} here and "
            f"{tuple(ours.shape)} with Pillow; its files do not say the same to both"
        )
    apart = 255 * max(deviation) * (ours - theirs).abs().max().item()
    if not apart <= LEVELS + 0.1:
        raise CheckpointError(
            f"{folder}: transformers' processor makes pixels up to {apart:.1f} of 255 levels from "
            f"Pillow's, more than {LEVELS}; its files do not say the same to both"
        )


def _image() -> PIL.Image.Image:
    """One that is neither square nor of any encoder's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((300, 200), PIL.Image.Resampling.BILINEAR)
