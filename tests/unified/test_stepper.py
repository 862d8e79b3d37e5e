"""Codes one after the other by joined matrices: the same logits as the common way."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from chiasm.core.batch import Encoded, pack
from chiasm.core.vocab import Vocabulary
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.unified.stepper import Stepper

GAINS = Stepper.__dict__["_gains"]


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """Joined matrices wherever they fit, whatever is the faster for a model this small."""
    monkeypatch.setattr(Stepper, "_gains", True)


V = Vocabulary(20, 12, pad=0, begin=1, end=2, begin_image=3, end_image=4)
CONFIG = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
PROMPTS = (3, 6, 1)
STEPS = 9
SWITCHES = {
    "default": {},
    "plain": {"qk_norm": False, "kv_heads": 4},
    "rms": {"qk_norm": "rms", "kv_heads": 1},
    "tied": {"tied": True},
    "soft-cap": {"logit_softcap": 3.0},
    "mup": {"mup_base_width": 16},
    "bidirectional": {"image_attention": "bidirectional"},
}
COMMON = {
    "2d": {"rope": "2d"},
    "post_norm": {"post_norm": True},
    "attention soft-cap": {"attention_softcap": 5.0},
}


def model(**changes):
    torch.manual_seed(0)
    made = Unified(dataclasses.replace(CONFIG, **changes), V, columns=3).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def said(lengths, start, ids):
    """A row a length: tokens from ids, their positions from `start` of each row on."""
    rows = []
    for number, length in enumerate(lengths):
        at = np.arange(length) + start[number]
        own = np.array(ids[number][:length])
        nothing = np.full(length, -100)
        rows.append([Encoded(own, nothing, at, np.zeros(length, np.int64), at.copy())])
    return pack(rows)


def prompted(made):
    """A cache that holds prompts of uneven lengths, each ending in the begin of an image."""
    random, cache = np.random.default_rng(0), made.new_cache()
    ids = [[*random.integers(5, 20, length - 1).tolist(), 3] for length in PROMPTS]
    made(said(PROMPTS, [0] * len(PROMPTS), ids), cache)
    return cache


def next_codes(ids, number):
    return said([1] * len(PROMPTS), [length + number for length in PROMPTS], [[i] for i in ids])


def assert_equal_steps(made, stepper):
    codes = np.random.default_rng(1).integers(20, 32, (STEPS, len(PROMPTS)))
    common, lean = prompted(made), prompted(made)
    step = stepper.begin(next_codes(codes[0], 0), lean, STEPS)
    for number, ids in enumerate(codes):
        expected = made.logits(made(next_codes(ids, number), common))[:, 0, V.first_code :]
        torch.testing.assert_close(
            step(number, torch.from_numpy(ids)), expected, atol=1e-5, rtol=1e-5
        )
    assert len(common) == len(lean)
    after = next_codes([4] * len(PROMPTS), STEPS)
    torch.testing.assert_close(made(after, lean), made(after, common), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
@torch.inference_mode()
def test_steps_equal_the_common_way(switch):
    made = model(**SWITCHES[switch])
    assert_equal_steps(made, made.new_stepper())


@torch.no_grad()
def test_changed_weights_are_joined_anew():
    made = model()
    stepper = made.new_stepper()
    assert_equal_steps(made, stepper)
    made.layers[1].mlp.up_proj.weight.mul_(2)
    assert_equal_steps(made, stepper)
    made.lm_head.weight = torch.nn.Parameter(-made.lm_head.weight)
    assert_equal_steps(made, stepper)


@pytest.mark.parametrize("switch", COMMON)
@torch.no_grad()
def test_what_it_does_not_know_takes_the_common_way(switch):
    made = model(**COMMON[switch])
    cache = prompted(made)
    assert made.new_stepper().begin(next_codes([20] * 3, 0), cache, STEPS) is None
    assert len(cache) == max(PROMPTS)


def test_gradients_and_autocast_take_the_common_way():
    made, first = model(), next_codes([20] * 3, 0)
    assert made.new_stepper().begin(first, prompted(made), STEPS) is None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert made.new_stepper().begin(first, prompted(made), STEPS) is None


@torch.inference_mode()
def test_slow_joined_matrices_are_not_taken(monkeypatch, fresh_choices):
    joined = Stepper._joined

    def slow(*given):
        time.sleep(0.05)
        return joined(*given)

    monkeypatch.setattr(Stepper, "_gains", GAINS)
    monkeypatch.setattr(Stepper, "_joined", slow)
    made = model()
    cache = prompted(made)
    assert made.new_stepper().begin(next_codes([20] * 3, 0), cache, STEPS) is None
    assert len(cache) == max(PROMPTS)
