"""What a saved run computes of one fixed image and question: compared with tests/fixtures/runs."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from chiasm.core.batch import pack
from chiasm.core.sample import Image, Sample, user
from chiasm.hub.load import load
from chiasm.recipes.jobs.tokenizer import pixels_of
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.contrastive import DualEncoder

RUNS = Path(__file__).parent / "fixtures" / "runs"
EVERY = 8
"""Of the logits of the last token so many are one recorded."""


def image() -> PIL.Image.Image:
    """32 x 32 pixels of three gradients, from arithmetic alone."""
    rows, columns = np.mgrid[:32, :32]
    channels = (rows * 7 + columns) % 256, columns * 8 % 256, (rows * columns) % 256
    return PIL.Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def sample() -> Sample:
    return Sample((user(Image(image()), "what color is it?"),), "fixed")


@torch.no_grad()
def outputs(folder: Path) -> dict[str, Any]:
    """The numbers of a run of any kind: embeddings, codes and pixels, or ids and logits."""
    model, processor = load(folder, "cpu")
    if isinstance(model, DualEncoder):
        patches, grids = processor.images([image()])
        ids, lengths = processor.texts(["a red square"])
        return {
            "image": model.embed_images(patches, grids)[0].tolist(),
            "text": model.embed_texts(ids, lengths)[0].tolist(),
        }
    if isinstance(model, Autoencoder):
        codes = model.encode(pixels_of(processor, [sample()]))
        return {"codes": codes[0].tolist(), "pixels": model.decode(codes)[0, :, ::8, ::8].tolist()}
    [(encoded, _)] = processor.prompts([sample()])
    hidden = model(pack([[encoded]]))
    logits = model.logits(hidden[0, -1])[::EVERY].tolist()
    return {"ids": encoded.input_ids.tolist(), "logits": logits}
