"""Every projector's contract, and each against an independent reference at toy size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
)
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector

from chiasm.core.config import from_dict, override, to_dict
from chiasm.core.errors import ConfigError
from chiasm.mllm.config import (
    AveragePoolConfig,
    CAbstractorConfig,
    DAbstractorConfig,
    IdentityConfig,
    LinearConfig,
    MLLMConfig,
    MLPConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    QFormerConfig,
    ResidualMLPConfig,
    TokenMergeConfig,
)
from chiasm.mllm.projectors import build_projector
from chiasm.mllm.projectors.c_abstractor import ResNetBlock
from chiasm.mllm.projectors.d_abstractor import DeformableAttention
from chiasm.mllm.projectors.token_merge import merge_tokens

VISION, LANGUAGE, SCALE = 12, 8, 0.1
CONFIGS = [
    IdentityConfig(),
    LinearConfig(),
    LinearConfig(zero_init=True),
    MLPConfig(merge=1),
    MLPConfig(merge=3, layers=3, hidden=7),
    ResidualMLPConfig(merge=1),
    ResidualMLPConfig(merge=2, hidden=7),
    PixelShuffleConfig(factor=2),
    AveragePoolConfig(size=2),
    AveragePoolConfig(size=3, layers=1),
    PerceiverConfig(latents=3, layers=2, heads=2),
    QFormerConfig(queries=3, layers=3, width=16, heads=2),
    QFormerConfig(queries=3, layers=2, width=0, heads=3),
    CAbstractorConfig(side=2, blocks=2),
    CAbstractorConfig(side=3, blocks=1, width=16),
    DAbstractorConfig(side=2, layers=2, heads=2, points=2),
    DAbstractorConfig(side=3, layers=1, width=16, heads=4, points=3),
    TokenMergeConfig(tokens=3),
]
GRIDS = [(4, 4), (2, 5), (1, 1), (3, 3), (5, 2), (2, 5), (1, 7), (6, 4)]
everything = pytest.mark.parametrize("config", CONFIGS, ids=str)


def build(config, language=LANGUAGE):
    torch.manual_seed(0)
    width = VISION if isinstance(config, IdentityConfig) else language
    return build_projector(config, VISION, width, SCALE)


def features(grids, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(h * w for h, w in grids), VISION, generator=generator)


@everything
@pytest.mark.parametrize("grid", sorted(set(GRIDS)))
def test_as_many_tokens_as_it_says(config, grid):
    projector = build(config)
    for number in (1, 2):
        tokens = projector(features([grid] * number), torch.tensor([grid] * number))
        width = VISION if isinstance(config, IdentityConfig) else LANGUAGE
        assert tokens.shape == (number * projector.tokens(grid), width)


@torch.no_grad()
@everything
def test_an_image_is_the_same_alone_and_in_company(config):
    projector = build(config)
    if config == LinearConfig(zero_init=True):
        torch.nn.init.normal_(projector.linear.weight)
    packed = features(GRIDS)
    together = projector(packed, torch.tensor(GRIDS))
    alone = [
        projector(part, torch.tensor([grid]))
        for part, grid in zip(packed.split([h * w for h, w in GRIDS]), GRIDS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert together.abs().sum() > 0


@everything
def test_every_parameter_gets_a_gradient(config):
    projector = build(config)
    seen = features(GRIDS).requires_grad_()
    tokens = projector(seen, torch.tensor(GRIDS))
    (tokens * torch.randn(tokens.shape)).sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("k_proj.bias"):  # softmax does not see what all keys share
            assert parameter.grad.abs().max() > 1e-8, name
    if config != LinearConfig(zero_init=True):
        assert seen.grad is not None
        assert seen.grad.abs().sum() > 0


@pytest.mark.parametrize("config", CONFIGS[1:], ids=str)
def test_it_learns_a_toy_target(config):
    projector = build(config)
    grids = [(2, 3), (3, 3)]
    seen = features(grids)
    target = torch.randn(sum(projector.tokens(g) for g in grids), LANGUAGE) * SCALE
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss = (projector(seen, torch.tensor(grids)) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # One linear layer has few more weights than the target has numbers; the others fit it.
    assert min(losses[-5:]) < 0.3 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS[1:], ids=str)
def test_tokens_start_as_large_as_words(config):
    if config == LinearConfig(zero_init=True):
        assert not build(config)(features(GRIDS), torch.tensor(GRIDS)).any()
        return
    grids = [(6, 6)] * 20
    projector = build(config, 64)
    # Neighbouring features are alike: half of each is the whole image's.
    common = torch.randn(20, 1, VISION).expand(-1, 36, -1).flatten(0, 1)
    tokens = projector((common + features(grids)) / 2**0.5, torch.tensor(grids))
    size = tokens.square().mean().sqrt().item() / SCALE
    assert 0.5 < size < 1.6


@torch.no_grad()
@everything
def test_bfloat16(config):
    """Under autocast, and wholly in it as a frozen model is held."""
    projector = build(config)
    exact = projector(features(GRIDS), torch.tensor(GRIDS))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = projector(features(GRIDS), torch.tensor(GRIDS))
    low = projector.bfloat16()(features(GRIDS).bfloat16(), torch.tensor(GRIDS))
    assert low.dtype == torch.bfloat16
    for tokens in (mixed, low):
        # Rounding can change which tokens merge: that is another, as good, choice.
        if not isinstance(config, TokenMergeConfig):
            error = (tokens.float() - exact).square().mean() / exact.square().mean().clamp(1e-9)
            assert error < 0.01


@everything
def test_configs_survive_json(config):
    whole = MLLMConfig(projector=config)
    again = from_dict(MLLMConfig, to_dict(whole))
    assert again == whole
    assert type(again.projector) is type(config)
    assert override(MLLMConfig(), {"projector": json.dumps(to_dict(config))}) == whole


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IdentityConfig(), "width 12 into a language model of width 8; choose LinearConfig"),
        (MLPConfig(merge=0), r"projector\.merge: 0, but it must be at least 1"),
        (QFormerConfig(width=-1), r"projector\.width: -1, but it must be at least 0"),
        (PerceiverConfig(heads=5), "5 heads cannot share a width of 12; choose heads that divide"),
        (QFormerConfig(width=16, heads=3), "3 heads cannot share a width of 16"),
        (DAbstractorConfig(heads=5), "5 heads cannot share a width of 12"),
    ],
)
def test_what_cannot_be_built_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        build_projector(config, VISION, LANGUAGE, SCALE)


def copied(ours, theirs):
    """Fill our parameters from theirs, pair by pair."""
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(other)


def weights(*layers):
    return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]


@torch.no_grad()
def test_mlp_is_llavas():
    theirs = LlavaMultiModalProjector(
        SimpleNamespace(
            vision_config=SimpleNamespace(hidden_size=VISION),
            text_config=SimpleNamespace(hidden_size=LANGUAGE),
            vision_feature_layer=-2,
            projector_hidden_act="gelu",
            multimodal_projector_bias=True,
        )
    )
    ours = build(MLPConfig(merge=1))
    copied(ours.parameters(), theirs.parameters())
    x = features([(2, 3)])
    torch.testing.assert_close(ours(x, torch.tensor([[2, 3]])), theirs(x))


@torch.no_grad()
def test_linear_is_paligemmas():
    vision = SimpleNamespace(hidden_size=VISION, projection_dim=LANGUAGE)
    theirs = PaliGemmaMultiModalProjector(SimpleNamespace(vision_config=vision))
    ours = build(LinearConfig(zero_init=True))
    copied(ours.parameters(), theirs.parameters())
    x = features([(2, 3)])
    torch.testing.assert_close(ours(x, torch.tensor([[2, 3]])), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_is_idefics3s(factor):
    theirs = Idefics3Connector(
        SimpleNamespace(
            scale_factor=factor,
            vision_config=SimpleNamespace(hidden_size=VISION),
            text_config=SimpleNamespace(hidden_size=LANGUAGE),
        )
    )
    ours = build(PixelShuffleConfig(factor))
    copied(ours.parameters(), theirs.parameters())
    x = features([(6, 6)] * 2)
    expected = theirs(x.view(2, 36, VISION)).flatten(0, 1)
    torch.testing.assert_close(ours(x, torch.tensor([[6, 6]] * 2)), expected)


class SquaredReLU(torch.nn.Module):
    def forward(self, x):
        return F.relu(x).square()


@torch.no_grad()
def test_perceiver_is_idefics():
    """But for the activation: Idefics has ReLU, Flamingo's appendix A.1.1 squared ReLU."""
    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False),
        vision_config=SimpleNamespace(embed_dim=VISION),
    )
    theirs = IdeficsPerceiverResampler(config, VISION, 2, 3, VISION // 3, 5)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = build(PerceiverConfig(latents=5, layers=2, heads=3))
    copied([ours.latents], [theirs.latents])
    for layer, (attention, mlp) in zip(ours.layers, theirs.blocks, strict=True):
        mlp.act = SquaredReLU()
        mine, other = layer.attention, attention
        copied(
            weights(layer.feature_norm, layer.latent_norm, mine.q_proj, mine.k_proj, mine.v_proj),
            weights(
                other.context_layer_norm,
                other.latents_layer_norm,
                other.q_proj,
                other.k_proj,
                other.v_proj,
            ),
        )
        copied(
            weights(mine.out_proj, layer.mlp_norm, layer.up, layer.down),
            weights(other.output_proj, mlp.ln, mlp.fc, mlp.c_proj),
        )
    copied(weights(ours.norm), weights(theirs.layer_norm))
    x = features([(2, 3)] * 2)
    expected = ours.out(theirs(x.view(2, 6, VISION))).flatten(0, 1)
    torch.testing.assert_close(ours(x, torch.tensor([[2, 3]] * 2)), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_qformer_is_blip2s():
    config = Blip2QFormerConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        encoder_hidden_size=VISION,
        cross_attention_frequency=2,
    )
    theirs = Blip2QFormerModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = build(QFormerConfig(queries=5, layers=3, width=16, heads=2))
    copied(weights(ours.norm), weights(theirs.layernorm))

    def attention(mine, norm, other):
        inner, after = other.attention, other.output
        copied(
            weights(mine.q_proj, mine.k_proj, mine.v_proj, mine.out_proj, norm),
            weights(inner.query, inner.key, inner.value, after.dense, after.LayerNorm),
        )

    for mine, other in zip(ours.layers, theirs.encoder.layer, strict=True):
        attention(mine.self_attention, mine.self_norm, other.attention)
        assert mine.looks == other.has_cross_attention
        if mine.looks:
            attention(mine.cross_attention, mine.cross_norm, other.crossattention)
        after = other.output_query
        copied(
            weights(mine.up, mine.down, mine.mlp_norm),
            weights(other.intermediate_query.dense, after.dense, after.LayerNorm),
        )
    x = features([(2, 3)] * 2)
    seen = theirs(
        query_embeds=ours.queries.expand(2, -1, -1),
        encoder_hidden_states=x.view(2, 6, VISION),
    ).last_hidden_state
    expected = ours.out(seen).flatten(0, 1)
    torch.testing.assert_close(ours(x, torch.tensor([[2, 3]] * 2)), expected, atol=1e-5, rtol=1e-4)


def deformable():
    """A DeformableAttention with random offsets, and queries, points, features for it."""
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, 3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention, torch.randn(2, 5, 8), torch.rand(5, 2), torch.randn(2, 3, 4, 8)


@torch.no_grad()
def test_deformable_attention_is_deformable_detrs():
    ours, queries, points, x = deformable()
    config = SimpleNamespace(d_model=8, num_feature_levels=1, disable_custom_kernels=True)
    theirs = DeformableDetrMultiscaleDeformableAttention(config, 2, 3)
    copied(
        weights(theirs.sampling_offsets, theirs.attention_weights),
        weights(ours.offsets, ours.weights),
    )
    copied(weights(theirs.value_proj, theirs.output_proj), weights(ours.values, ours.out))
    expected, _ = theirs(
        queries,
        encoder_hidden_states=x.flatten(1, 2),
        reference_points=points.expand(2, -1, -1)[:, :, None],
        spatial_shapes=torch.tensor([[3, 4]]),
        spatial_shapes_list=[(3, 4)],
        level_start_index=torch.tensor([0]),
    )
    torch.testing.assert_close(ours(queries, points, x), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_deformable_attention_is_a_loop_over_places():
    ours, queries, points, x = deformable()
    values = ours.values(x).view(2, 3, 4, 2, 4).numpy()
    offsets = ours.offsets(queries).view(2, 5, 2, 3, 2).numpy()
    shares = ours.weights(queries).view(2, 5, 2, 3).softmax(-1).numpy()
    mixed = np.zeros((2, 5, 2, 4), np.float32)
    for n, q, head, k in np.ndindex(2, 5, 2, 3):
        # In patches, whose centres are at 0.5, 1.5, …
        column = points[q, 0].item() * 4 + offsets[n, q, head, k, 0] - 0.5
        row = points[q, 1].item() * 3 + offsets[n, q, head, k, 1] - 0.5
        for i in range(3):
            for j in range(4):
                near = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                mixed[n, q, head] += shares[n, q, head, k] * near * values[n, i, j, head]
    expected = ours.out(torch.tensor(mixed).flatten(2))
    torch.testing.assert_close(ours(queries, points, x), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_queries_of_the_d_abstractor_start_at_cell_centres():
    points = build(DAbstractorConfig(side=2, heads=2)).points.sigmoid()
    expected = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    torch.testing.assert_close(points, expected)


@torch.no_grad()
def test_a_resnet_block_is_loops():
    torch.manual_seed(0)
    block = ResNetBlock(4, 8)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(1, 3, 2, 4)
    p = {name: value.double().numpy() for name, value in block.named_parameters()}

    def norm(v, name):
        v = v - v.mean(-1, keepdims=True)
        v = v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-5)
        return v * p[f"{name}.weight"] + p[f"{name}.bias"]

    def silu(v):
        return v / (1 + np.exp(-v))

    seen = x[0].double().numpy()
    y = silu(norm(seen @ p["first.weight"].T, "first_norm"))
    around = np.zeros_like(y)
    for i, j, a, b in np.ndindex(3, 2, 3, 3):
        if 0 <= i + a - 1 < 3 and 0 <= j + b - 1 < 2:
            around[i, j] += p["spatial.weight"][:, 0, a, b] * y[i + a - 1, j + b - 1]
    y = silu(norm(around, "spatial_norm"))
    gate = silu(p["squeeze.weight"] @ y.mean((0, 1)) + p["squeeze.bias"])
    gate = p["excite.weight"] @ gate + p["excite.bias"]
    y = norm((y / (1 + np.exp(-gate))) @ p["last.weight"].T, "last_norm")
    y = silu(y + norm(seen @ p["shortcut.0.weight"].T, "shortcut.1"))
    torch.testing.assert_close(block(x)[0].double(), torch.tensor(y), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 2), (5, 1)])
def test_average_pooling_is_a_loop(grid):
    projector = build(AveragePoolConfig(size=2, layers=1))
    h, w = grid
    x = features([grid]).view(h, w, VISION)
    means = [
        x[i : i + 2, j : j + 2].flatten(0, 1).mean(0)
        for i in range(0, h, 2)
        for j in range(0, w, 2)
    ]
    expected = projector.layers(torch.stack(means))
    torch.testing.assert_close(projector(x.flatten(0, 1), torch.tensor([grid])), expected)


def merged_by_loops(x, count):
    """Token merging of x [T D], a token being a list of the rows in it."""
    tokens = [[row] for row in x]

    def mean(token):
        return np.mean(token, axis=0)

    while len(tokens) > count:
        pairs = []
        for i in range(0, len(tokens), 2):
            a = mean(tokens[i])
            found = []
            for j in range(1, len(tokens), 2):
                b = mean(tokens[j])
                found.append((a @ b / np.linalg.norm(a) / np.linalg.norm(b), i, j))
            pairs.append(max(found))
        best = sorted(pairs, reverse=True)[: min(len(tokens) - count, len(tokens) // 2)]
        for _, i, j in best:
            tokens[j] = tokens[j] + tokens[i]
        gone = {i for _, i, _ in best}
        tokens = [token for i, token in enumerate(tokens) if i not in gone]
    return np.stack([mean(token) for token in tokens])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 15, 16, 20])
def test_token_merging_is_a_loop(count):
    x = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    expected = np.stack([merged_by_loops(rows.numpy(), count) for rows in x])
    assert expected.shape[1] == min(16, count)
    torch.testing.assert_close(merge_tokens(x, count), torch.tensor(expected))
