"""The cost model's parts against what torch counts."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from chiasm.nn.flops import attention_flops, matrix_parameters, segment_lengths
from chiasm.nn.peak_flops import gemm_peak

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "attn_implementation": "eager",
}


@torch.no_grad()
@pytest.mark.parametrize("config", [GptOssConfig, MixtralConfig])
def test_a_token_pays_for_the_experts_it_is_sent_to(config):
    model = AutoModelForCausalLM.from_config(config(**SHAPE, experts_implementation="eager"))
    tokens = 40
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.arange(tokens)[None])
    layers = model.model.layers
    mixing = attention_flops(torch.tensor([tokens]), 32, 2)
    expected = 2.0 * tokens * (matrix_parameters(layers, 2) + 64 * 32) + mixing
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)
    assert matrix_parameters(layers, 8) > 2 * matrix_parameters(layers, 2)


def test_a_matrix_of_4_bits_counts_whole():
    class Packed(nn.Linear):
        """As bitsandbytes holds it: two values a byte, in a column."""

        def __init__(self):
            super().__init__(64, 32)
            packed = torch.zeros(64 * 32 // 2, 1, dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)

    assert matrix_parameters(nn.Sequential(Packed(), nn.LayerNorm(32))) == 64 * 32


def test_segments_are_counted_without_padding():
    segment = torch.tensor([[0, 0, 0, 1, -1, -1], [0, 1, 1, 1, 1, -1]])
    assert segment_lengths(segment).tolist() == [3, 1, 1, 4]
    assert len(segment_lengths(torch.full((2, 3), -1))) == 0


def test_the_measured_peak_is_a_rate_of_this_machine():
    peak = gemm_peak("cpu", torch.float32)
    assert 1e8 < peak < 1e14
    assert gemm_peak("cpu", torch.float32) == peak
