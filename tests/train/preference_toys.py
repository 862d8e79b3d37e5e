"""Preference pairs, labelled replies and models of both routes at toy size."""

from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from test_resume import CODES, VISION, WORDS, language

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.objectives import chat
from chiasm.data.preference_stream import PreferenceStream
from chiasm.data.text import train_bpe
from chiasm.hub import mllm, unified
from chiasm.mllm.config import LoRAConfig, MLLMConfig, MLPConfig
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import UnifiedConfig
from chiasm.vision.vit import ViT


def image(n):
    pixels = np.random.default_rng(n).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image(PIL.Image.fromarray(pixels))


def pairs(count=6, drawn=False):
    """Replies of several lengths after no, one or two images, one of them in a second round; drawn:
    some of the replies are images."""
    made = []
    for n in range(count):
        shown = [image(10 * n + i) for i in range(n % 3)]
        turns = [user(*shown, f"what is number {n}?")]
        if n % 2:
            turns += [assistant("it is noise"), user("a number it is?")]
        chosen, rejected = assistant("it is red " * (n % 3 + 1)), assistant(f"a circle {n}")
        if drawn and n % 2 == 0:
            chosen, rejected = assistant(image(100 + n)), assistant(image(200 + n))
        made.append(Sample((*turns, chosen), f"p{n}", rejected=(rejected,)))
    return made


def labelled(count=6):
    return [s.replace(rejected=(), desired=n % 3 != 0) for n, s in enumerate(pairs(count))]


def mllm_toy(folder, lora=False, **settings):
    if lora:
        pytest.importorskip("peft")
    if not (folder / "config.json").exists():
        language(folder)
    torch.manual_seed(1)
    adapters = LoRAConfig(rank=2, alpha=4.0) if lora else None
    config = MLLMConfig(
        language_model=str(folder), projector=MLPConfig(merge=1), lora=adapters, **settings
    )
    return mllm.build(config, ViT(VISION))


def unified_toy(_folder=None, **settings):
    torch.manual_seed(1)
    size = {
        "hidden_size": 16,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "intermediate_size": 24,
        **settings,
    }
    return unified.build(UnifiedConfig(**size), train_bpe(WORDS, 290), Autoencoder(CODES).eval())


TOYS = {
    "mllm": (mllm_toy, {"projector": 1e-2, "language_model": 1e-2}, pairs),
    "lora": (partial(mllm_toy, lora=True), {"lora": 1e-2}, pairs),
    "unified": (unified_toy, {"embedding": 1e-2, "transformer": 1e-2}, partial(pairs, drawn=True)),
}


def stream(processor, samples, tokens=150, labelled=False):
    return PreferenceStream(samples, [chat], processor, tokens, 3, labelled=labelled)
