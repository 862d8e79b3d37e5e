"""Heads that look at neighbours, before anything is learned."""

import pytest
import torch

from chiasm.core.vocab import Vocabulary
from chiasm.nn.rope import rotate, rotation
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.local_heads import look_nearby
from chiasm.unified.model import Unified


def model(**changes):
    torch.manual_seed(0)
    settings = {
        "hidden_size": 64,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": 64,
    } | changes
    return Unified(UnifiedConfig(**settings), Vocabulary(20, 16, 0, 1, 2, 3, 4))


def scores(layer, head, theta):
    """What the constant part of a head gives each earlier token, seen from the 60th."""
    size = layer.self_attn.size
    shared = layer.self_attn.q_norm.bias.shape[0] // layer.self_attn.k_norm.bias.shape[0]
    where = torch.arange(61)[None]
    query = rotate(
        layer.self_attn.q_norm.bias[head][None, None, None], *rotation(where[:, -1:], size, theta)
    )
    keys = layer.self_attn.k_norm.bias[head // shared].expand(1, 61, 1, size)
    return (rotate(keys, *rotation(where, size, theta)) * query).sum(-1)[0, :, 0] / size**0.5


@pytest.mark.parametrize("theta", [100.0, 10000.0])
def test_each_head_prefers_its_own_neighbour(theta):
    columns = 8
    built = model(rope_theta=theta)
    look_nearby(built, columns)
    for layer in built.layers[:2]:
        for head, distance in ((0, 1), (1, 1), (2, columns), (3, columns)):
            found = scores(layer, head, theta)
            assert int(found.argmax()) == 60 - distance
            assert found.max() > found.topk(2).values[1] + 0.3
    assert built.layers[2].self_attn.q_norm.bias.abs().sum() == 0


def test_without_qk_norm_nothing_changes():
    built, plain = model(qk_norm=False), model(qk_norm=False)
    look_nearby(built, 8)
    for a, b in zip(built.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
