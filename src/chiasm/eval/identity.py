"""What a result was measured with: versions, weights, and what the model was really given."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

import chiasm
from chiasm.core.errors import DataError
from chiasm.core.sample import Sample
from chiasm.data.processor import Processor

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")
LOOKED_AT = 8
"""Questions whose prompts are hashed."""


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    python, machine = sys.version.split()[0], platform.machine()
    return {"chiasm": chiasm.__version__, "python": python, **found, "machine": machine}


def prompt_hashes(processor: Processor, samples: Sequence[Sample]) -> dict[str, str]:
    """prompt_hash: of the token ids and their order and masks that the model is given for the
    task's first questions, so of template and tokenizer (and of image codes where they are ids);
    processor_hash: of the pixels that its encoder is given for them. Equal hashes, equal
    prompts; samples that cannot be encoded are left out."""
    prompt, pixels = hashlib.sha256(), hashlib.sha256()
    for sample in samples[:LOOKED_AT]:
        try:
            encoded = processor.prompts([sample])[0][0]
        except DataError:
            continue
        for part in (
            encoded.input_ids,
            encoded.block_ids,
            encoded.branch_ids,
            encoded.position_ids,
        ):
            prompt.update(np.ascontiguousarray(part).tobytes())
        for part in (
            encoded.image_patches,
            encoded.image_grids,
        ):  # place moves with the words before it
            if part is not None:
                pixels.update(np.ascontiguousarray(part).tobytes())
    return {"prompt_hash": prompt.hexdigest()[:16], "processor_hash": pixels.hexdigest()[:16]}


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 of chiasm's own source: equal hashes make equal prompts of equal questions."""
    sha, root = hashlib.sha256(), Path(chiasm.__file__).parent
    for file in sorted(root.rglob("*.py")):
        sha.update(str(file.relative_to(root)).encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


def weights_hash(folder: Path) -> str:
    """SHA-256 of a saved model's weights and configurations, checkpoints apart."""
    sha = hashlib.sha256()
    skipped = ("checkpoints", "saving.tmp")
    parts = ("model.json", "*.safetensors", "tokenizer*.json", "config.json")
    files = {f for name in parts for f in folder.rglob(name)}
    for file in sorted(files):
        place = file.relative_to(folder)
        if place.parts[0] not in skipped:
            sha.update(str(place).encode())
            with file.open("rb") as handle:
                sha.update(hashlib.file_digest(handle, "sha256").digest())
    return sha.hexdigest()[:16]
