"""Training a projector over a frozen encoder with the feature cache against the same without it.

Both: the align-type stage of LLaVA (2304.08485, section 4.2) on easy-VQA's images, each described
by its caption: projector trained, encoder and language model frozen, packed rows of 512 tokens,
in the precision that the stage measures to be faster here, through chiasm.train.loop. The encoder
has SigLIP-B/16's blocks at a sixth of its depth, the language model half of SmolLM2-135M's width
and a fifth of its depth, random weights. A unit is an image, over the second epoch of IMAGES
images: the cache is warm, as in every epoch but the first. Before timing, what is remembered is
checked to be what is encoded.

Extra keys: the same over the first epoch, in which the cache is written (ours / peer below 1 is
what that costs), and megabytes on disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import AttentionInterface

from benchmarks.harness import Comparison, alternate, report, result, round_to, rounds_argument
from chiasm.core.batch import Batch, pack
from chiasm.core.progress import silent
from chiasm.data import easy_vqa
from chiasm.data.objectives import caption
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLPConfig
from chiasm.mllm.language import attention_forward
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.train.feature_cache import open_cache
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

IMAGES, TOKENS = 64, 512
ALIGN = Stage("align", 0, lr={"projector": 1e-3})


class Given:
    """The same batches again and again, as a stream."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches, self.cursor = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.cursor += 1
            yield self.batches[(self.cursor - 1) % len(self.batches)]

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]

    def split(self, data_shard: int, count: int) -> None:
        self.batches = self.batches[data_shard::count]


def build() -> tuple[MLLM, list[Batch]]:
    """The model and one epoch of batches."""
    AttentionInterface.register("chiasm", attention_forward)
    torch.manual_seed(0)
    samples = [s for s in easy_vqa.load("train") if s.meta["caption"]][:IMAGES]
    bpe = train_bpe(easy_vqa.CAPTIONS, 400)
    vision = ViT(ViTConfig(patch_size=8, width=768, layers=2, heads=12))
    shape = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    language = LlamaForCausalLM._from_config(shape, attn_implementation="chiasm")
    projector = build_projector(MLPConfig(merge=4), 768, 288, 0.02)
    model = MLLM(vision, projector, language, shape.vocab_size)
    codec = MLLMCodec(vision.config, projector, model.image_token)
    processor = Processor(RoleTemplate(bpe), codec)
    random = np.random.default_rng(0)
    described = [caption(sample, random) for sample in samples]
    encoded = [processor.encode(sample) for sample in described if sample is not None]
    rows, row = [], []
    for one in encoded:
        if sum(map(len, row)) + len(one) > TOKENS:
            rows, row = [*rows, row], []
        row.append(one)
    return model, [pack([row]) for row in [*rows, row]]


def epoch(model: MLLM, batches: list[Batch], place: Path, room: float) -> float:
    """Train for one epoch with so many gigabytes of cache; how many images that were."""
    stage = replace(ALIGN, steps=len(batches), feature_cache=room)
    shutil.rmtree(place / "run", ignore_errors=True)
    train(model, [stage], lambda _: Given(batches), place / "run", show=silent)
    return float(IMAGES)


def check(model: MLLM, batches: list[Batch]) -> None:
    """What is remembered must be what is encoded."""
    for parameter in model.vision.parameters():
        parameter.requires_grad_(False)
    cache = open_cache(model.vision, 1e9)
    for _ in range(2):
        for batch in batches:
            assert batch.image_patches is not None
            assert batch.image_grids is not None
            remembered = cache(model.vision, batch)
            torch.testing.assert_close(
                remembered,
                model.vision(batch.image_patches, batch.image_grids),
                atol=1e-5,
                rtol=1e-5,
            )
    cache.close()


def emptied(place: Path, run: Callable[[], float]) -> Callable[[], float]:
    """The run over a cache that holds nothing."""

    def cold() -> float:
        shutil.rmtree(place / "features", ignore_errors=True)
        return run()

    return cold


def main() -> None:
    rounds = rounds_argument(__doc__, 5)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["CHIASM_CACHE"] = str(place)
        model, batches = build()
        check(model, batches)

        def ours() -> float:
            return epoch(model, batches, place, 1.0)

        def peer() -> float:
            return epoch(model, batches, place, 0.0)

        warm: Comparison = alternate(ours, peer, rounds)
        size = sum(f.stat().st_size for f in place.glob("features/*/*.data"))
        cold = alternate(emptied(place, ours), peer, rounds)
    report(
        "feature_cache",
        result(
            "images/s",
            warm,
            first_epoch_ratio=round_to(cold.ratio),
            megabytes=round_to(size / 1e6),
        ),
    )


if __name__ == "__main__":
    main()
