"""Two ranks that hold a model in parts equal one process, for every projector and image mode."""

import copy
import re
from itertools import product

import numpy as np
import PIL.Image
import pytest
import torch
from test_ranks import PARTS, together
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import AttentionInterface

from chiasm.core.batch import Encoded, pack
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import (
    AnyResConfig,
    AveragePoolConfig,
    CAbstractorConfig,
    CropConfig,
    CrossAttentionConfig,
    DAbstractorConfig,
    DeepStackConfig,
    IdentityConfig,
    LinearConfig,
    MLPConfig,
    NativeConfig,
    PadConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    QFormerConfig,
    ResidualMLPConfig,
    ResizeConfig,
    SplitConfig,
    TokenMergeConfig,
)
from chiasm.mllm.hf_attention import SEAM, attention_forward
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.train.fsdp import full, shard
from chiasm.train.parallel import current
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

WIDTH, SIDE, PATCH, IMAGE = 16, 16, 4, 3
PERCEIVER = PerceiverConfig(latents=3, layers=1, heads=2)
PROJECTORS = {
    "mlp": MLPConfig(merge=1),
    "identity": IdentityConfig(),
    "linear": LinearConfig(),
    "residual": ResidualMLPConfig(blocks=1, merge=2),
    "shuffle": PixelShuffleConfig(factor=2),
    "pool": AveragePoolConfig(),
    "perceiver": PERCEIVER,
    "qformer": QFormerConfig(queries=3, layers=1, width=0, heads=2),
    "c-abstractor": CAbstractorConfig(side=2, blocks=1),
    "d-abstractor": DAbstractorConfig(side=2, layers=1, heads=2, points=2),
    "token-merge": TokenMergeConfig(tokens=4),
    "deepstack": DeepStackConfig(levels=2, each=MLPConfig(merge=2)),
    "cross": CrossAttentionConfig((0, 1), 2, PERCEIVER),
}
MODES = {
    "resize": ResizeConfig(),
    "pad": PadConfig(),
    "crop": CropConfig(),
    "native": NativeConfig(16),
    "anyres": AnyResConfig(),
    "split": SplitConfig(longest_edge=2 * SIDE),
    "whole": SplitConfig(longest_edge=2 * SIDE, do_image_splitting=False),
}
EVERY = list(product(PROJECTORS, MODES))
COVERING = {
    *((projector, list(MODES)[n % len(MODES)]) for n, projector in enumerate(PROJECTORS)),
    *product(("mlp", "deepstack", "cross"), ("anyres",)),
    ("cross", "native"),
}
"""Every projector once, every mode, and those that reach beyond the projector's own forward."""


def made(projector, mode):
    """(model, codec): tiny ones."""
    AttentionInterface.register(SEAM, attention_forward)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=24,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_implementation=SEAM,
    )
    language = LlamaForCausalLM(shape)
    levels = 2 if projector == "deepstack" else 1
    limits = {"max_patches": 16} if mode == "native" else {}
    tower = ViTConfig(
        SIDE, PATCH, width=WIDTH, layers=2, heads=2, chosen=(1, 2)[-levels:], **limits
    )
    vision = ViT(tower)
    part = build_projector(PROJECTORS[projector], WIDTH * levels, WIDTH, 1.0)
    if mode == "anyres":
        part.image_newline = torch.nn.Parameter(torch.randn(WIDTH))
    model = MLLM(vision, part, language, IMAGE)
    with torch.no_grad():
        for parameter in model.parameters():  # gates at zero hide what is behind them
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, MLLMCodec(tower, part, IMAGE, MODES[mode], words)


def words(text):
    return [IMAGE if part == "<image>" else 5 for part in re.split("(<image>)", text) if part]


def batch(codec, shapes, seed):
    """A row for each of the shapes: an image of it, or None, and then words."""
    random, rows = np.random.default_rng(seed), []
    for shape in shapes:
        text = random.integers(5, 20, 6)
        ids, targets = text, text
        patches = grids = place = None
        if shape is not None:
            pixels = random.integers(0, 256, (*shape, 3), np.uint8)
            (slot,) = codec.encode([PIL.Image.fromarray(pixels)])
            ids = np.concatenate([slot.input_ids, text])
            targets = np.concatenate([np.full(len(slot.input_ids), -100), text])
            patches, grids, place = (
                slot.image_patches,
                np.array([slot.grid] * slot.tiles),
                slot.place,
            )
        at = np.arange(len(ids))
        rows.append([Encoded(ids, targets, at, at * 0, at, patches, grids, place=place)])
    return pack(rows)


def batches(codec):
    """Of two ranks: in the first step both have images, in the second one has none."""
    return [
        [batch(codec, [(20, 30), None], 1), batch(codec, [(40, 10), (12, 12)], 2)],
        [batch(codec, [None, None], 3), batch(codec, [(16, 33)], 4)],
    ]


def assert_parts_equal_one(projector, mode, rank):
    model, codec = made(projector, mode)
    alone = copy.deepcopy(model)
    assert shard(model, current(), PARTS, torch.device("cpu"))
    for step in batches(codec):
        for each in (model, alone):
            each.zero_grad(set_to_none=True)
        model.loss(step[rank]).sum.backward()
        for share in step:
            alone.loss(share).sum.backward()
        for (name, part), whole in zip(model.named_parameters(), alone.parameters(), strict=True):
            found = torch.zeros_like(whole) if part.grad is None else 2 * full(part.grad)
            expected = torch.zeros_like(whole) if whole.grad is None else whole.grad
            torch.testing.assert_close(
                found, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    "pairs",
    [sorted(COVERING), pytest.param(EVERY, marks=pytest.mark.slow)],
    ids=["covering", "every"],
)
def test_gradients_of_two_ranks_that_hold_parts_are_those_of_one(pairs, tmp_path):
    """FSDP leaves the mean over ranks: twice it is the sum."""

    def work(rank):
        for projector, mode in pairs:
            try:
                assert_parts_equal_one(projector, mode, rank)
            except Exception as error:
                raise AssertionError(f"{projector}, {mode}") from error

    together(work, tmp_path)
