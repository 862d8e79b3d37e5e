"""The language model by joined matrices: the same hidden states as the common way."""

import time

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import AttentionInterface

import chiasm.mllm.fused_decoder as decoder_module
import chiasm.nn.precision as precision
from chiasm.mllm.fused_decoder import Decoder, fastest
from chiasm.mllm.hf_attention import SEAM, attention_forward, run
from chiasm.nn.attention import TokenIndex, packed_layout
from chiasm.nn.batched_cache import SlotCache
from chiasm.nn.cache import KVCache

GAINS = Decoder._gains


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """Joined matrices wherever they fit: models this small are about as fast without."""
    monkeypatch.setattr(Decoder, "_gains", lambda *_: True)


SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}


def made(kind=LlamaForCausalLM, config=LlamaConfig, **changes):
    AttentionInterface.register(SEAM, attention_forward)
    torch.manual_seed(0)
    model = kind._from_config(config(**{**SHAPE, **changes}), attn_implementation=SEAM).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def index(lengths, start, width=None):
    """So many tokens a row from `start` of each on, padded on the right."""
    width = width or max(lengths)
    at = torch.arange(width)[None] + torch.tensor(start)[:, None]
    segment = torch.where(torch.arange(width)[None] < torch.tensor(lengths)[:, None], 0, -1)
    return TokenIndex(segment, at, torch.zeros_like(at), at)


def conversation(model, cache, act):
    """Hidden states of three prompts, then of four steps, by one way or another."""
    lengths, torn = (5, 9, 1), torch.Generator().manual_seed(1)
    first = index(lengths, (0, 0, 0))
    x = torch.randn(3, 9, 32, generator=torn)
    prompts = act(x, first.block, cache.extend(first), cache)
    told = [prompts[row, :length] for row, length in enumerate(lengths)]
    if isinstance(cache, KVCache) and type(cache) is KVCache:
        slots = SlotCache(4)
        slots.admit(cache)
    for step in range(4):
        x = torch.randn(3, 1, 32, generator=torn)
        new = index((1, 1, 1), [length + step for length in lengths])
        told.append(act(x, new.block, slots.extend(new), slots)[:, 0])
    return torch.cat(told)


SHAPES = {
    "grouped": {},
    "alone": {"num_key_value_heads": 4},
    "one": {"num_key_value_heads": 1},
    "wide": {"head_dim": 12},
    "tied": {"tie_word_embeddings": True},
    "scaled": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
}


@torch.no_grad()
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_same_hidden_states_and_logits_as_the_common_way(changes):
    model = made(**changes)
    decoder = Decoder(model)
    assert decoder.of(step=False) is decoder
    expected = conversation(model, KVCache(), lambda *given: run(model, *given))
    found = conversation(model, KVCache(), lambda *given: decoder(*given, {}))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    logits = model.get_output_embeddings()(expected)
    torch.testing.assert_close(decoder.head(found), logits, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_packed_rows_and_steps_between_layers():
    model = made()
    decoder = Decoder(model)
    assert decoder.of(step=True) is decoder
    segment = torch.tensor([[0, 0, 0, 1, 1, -1]])
    at = torch.tensor([[0, 1, 2, 0, 1, 0]])
    layout = packed_layout(TokenIndex(segment, at, torch.zeros_like(at)))
    x, double = torch.randn(1, 6, 32), {1: lambda x: 2 * x}
    with_hook = model.base_model.layers[1].register_forward_pre_hook(
        lambda _layer, args: (2 * args[0], *args[1:])
    )
    expected = run(model, x, at, layout)
    with_hook.remove()
    found = decoder(x, at, layout, None, double)
    torch.testing.assert_close(found[:, :5], expected[:, :5], atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize(("weights", "error"), [("bf16", 0.02), ("int8", 0.04), ("int4", 0.3)])
def test_narrow_weights_are_near_and_a_row_does_not_depend_on_its_company(weights, error):
    model = made(hidden_size=64, head_dim=16, intermediate_size=96)
    with torch.no_grad():  # as trained ones: no layer far louder than what it is added to
        for parameter in model.base_model.layers.parameters():
            parameter.mul_(0.5)
    exact, decoder = Decoder(model), Decoder(model, weights)
    assert exact.of(step=True) is exact
    assert decoder.of(step=True) is decoder
    rows, x = 5, torch.randn(5, 6, 64)
    layout = packed_layout(index((6,) * rows, (0,) * rows))
    at = torch.arange(6).expand(rows, 6)
    expected, found = (each(x, at, layout, None, {}) for each in (exact, decoder))
    assert torch.dist(found, expected) < error * expected.norm()
    assert not torch.equal(found, expected)
    one = packed_layout(index((6,), (0,)))
    for row in range(rows):
        alone = decoder(x[row : row + 1], at[:1], one, None, {})
        torch.testing.assert_close(alone[0], found[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_changed_weights_are_laid_out_anew():
    model = made()
    decoder = Decoder(model)
    at = torch.arange(6)[None]
    layout, x = packed_layout(index((6,), (0,))), torch.randn(1, 6, 32)
    for matrix in (
        model.base_model.layers[0].mlp.down_proj,
        model.base_model.layers[1].input_layernorm,
    ):
        assert decoder.of(step=True) is decoder
        matrix.weight.mul_(2)
        assert decoder.of(step=False) is decoder
        expected = run(model, x, at, layout)
        torch.testing.assert_close(decoder(x, at, layout, None, {}), expected, atol=2e-4, rtol=2e-4)
    model.base_model.layers[0].self_attn.o_proj.weight = nn.Parameter(torch.zeros(32, 32))
    assert decoder.of(step=False) is decoder
    expected = run(model, x, at, layout)
    torch.testing.assert_close(decoder(x, at, layout, None, {}), expected, atol=2e-4, rtol=2e-4)


OTHERS = {
    "biases": (Qwen2ForCausalLM, Qwen2Config, {}),
    "normed heads": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "a window": (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
    "another norm and gate": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8}),
    "another gate": (LlamaForCausalLM, LlamaConfig, {"hidden_act": "gelu"}),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_go_the_common_way(kind):
    make, config, changes = OTHERS[kind]
    assert Decoder(made(make, config, **changes)).of(step=True) is None


def test_where_it_is_not_used():
    model = made()
    decoder = Decoder(model)
    assert decoder.of(step=True) is None  # gradients are wanted
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert decoder.of(step=True) is None
        assert Decoder(made().to(torch.bfloat16)).of(step=True) is None
        adapted = made()
        inner = adapted.base_model.layers[0].mlp
        inner.down_proj = nn.Sequential(inner.down_proj)
        assert Decoder(adapted).of(step=True) is None


def test_the_fastest_weights_are_timed(monkeypatch):
    spent = {"fp32": 3.0, "bf16": 2.0, "int8": 2.5}
    monkeypatch.setattr(decoder_module, "_timed", lambda decoder: spent[decoder.weights])
    assert fastest(made()) == "bf16"
    assert fastest(made(Qwen2ForCausalLM, Qwen2Config)) == "fp32"  # no Decoder suits it
    monkeypatch.undo()
    assert fastest(made()) in spent


@torch.no_grad()
@pytest.mark.parametrize(("speedup", "weights"), [(2.0, "bf16"), (0.5, None)])
def test_prompts_are_not_computed_in_bytes(speedup, weights, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: speedup)
    for narrow in ("int8", "int4"):
        found = Decoder(made(), narrow).of(step=False)
        assert (found and found.weights) == weights


@torch.no_grad()
@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_slow_joined_matrices_are_not_taken(step, weights, monkeypatch, fresh_choices):
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda _device: 2.0)
    assert Decoder(made(), weights).of(step) is not None
    joined = decoder_module._joined

    def slow(*given):
        time.sleep(0.05)
        return joined(*given)

    monkeypatch.setattr(Decoder, "_gains", GAINS)
    monkeypatch.setattr(decoder_module, "_joined", slow)
    assert Decoder(made(), weights).of(step) is None
