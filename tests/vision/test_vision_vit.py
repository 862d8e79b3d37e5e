"""The visual encoder against transformers' SigLIP, and the contrastive model as a whole."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from chiasm.core.batch import ImageBatch
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder, zero_shot_weights
from chiasm.vision.patches import fit, from_array, patchify, to_array
from chiasm.vision.vit import AttentionPool, ViT

TINY = ViTConfig(image_size=32, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=2)


def siglip():
    """A random tiny tower whose biases and norms are not at their trivial starting values."""
    torch.manual_seed(0)
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=TINY.width,
            intermediate_size=TINY.width * TINY.mlp_ratio,
            num_hidden_layers=TINY.layers,
            num_attention_heads=TINY.heads,
            image_size=TINY.image_size,
            patch_size=TINY.patch_size,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def our_names(theirs):
    """A SigLIP tower's state as those of our ViT and our pool."""
    tower, pool = {}, {}
    for name, value in theirs.items():
        if name.startswith("encoder.") or name.startswith("post_layernorm."):
            tower[name.removeprefix("encoder.")] = value
        elif name.startswith("head.attention.in_proj_"):
            kind = name.rsplit("_", 1)[1]
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                pool[f"attention.{part}_proj.{kind}"] = piece
        elif name.startswith("head."):
            pool[name.removeprefix("head.")] = value
    tower["patch_embedding.weight"] = theirs["embeddings.patch_embedding.weight"].flatten(1)
    tower["patch_embedding.bias"] = theirs["embeddings.patch_embedding.bias"]
    tower["position_embedding"] = theirs["embeddings.position_embedding.weight"]
    return tower, pool


def patches_of(pixels, size=TINY.patch_size):
    """[N 3 H W] -> patches [P d] with grids [N 2], through the public patchify."""
    rows = [patchify(x.permute(1, 2, 0).numpy(), size) for x in pixels]
    grid = [pixels.shape[2] // size, pixels.shape[3] // size]
    return torch.from_numpy(np.concatenate(rows)), torch.tensor([grid] * len(pixels))


@torch.no_grad()
def test_tower_and_pool_equal_siglips():
    theirs = siglip()
    tower, pool = our_names(theirs.state_dict())
    vit, head = ViT(TINY), AttentionPool(TINY)
    vit.load_state_dict(tower)
    head.load_state_dict(pool)
    pixels = torch.randn(3, 3, 32, 32)
    expected = theirs(pixels)
    patches, grids = patches_of(pixels)
    features = vit(patches, grids)
    torch.testing.assert_close(
        features.view(3, 16, -1), expected.last_hidden_state, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(head(features, grids), expected.pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_patchify_and_a_matrix_equal_a_patch_convolution():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 16, 4, stride=4)
    pixels = torch.randn(2, 3, 12, 20)
    patches, grids = patches_of(pixels, 4)
    ours = F.linear(patches, conv.weight.flatten(1), conv.bias)
    assert grids.tolist() == [[3, 5], [3, 5]]
    torch.testing.assert_close(
        ours.view(2, 3, 5, 16).permute(0, 3, 1, 2), conv(pixels), atol=1e-5, rtol=1e-5
    )


def test_patchify_refuses_what_it_cannot_divide():
    with pytest.raises(ValueError, match="20x12 is not divisible into patches of 8"):
        patchify(np.zeros((12, 20, 3), np.float32), 8)


@torch.no_grad()
def test_mixed_grids_equal_each_image_alone():
    torch.manual_seed(0)
    vit, head = ViT(TINY), AttentionPool(TINY)
    parts = [
        patches_of(torch.randn(1, 3, h, w))
        for h, w in ((32, 32), (8, 64), (24, 16), (32, 32), (8, 8))
    ]
    patches, grids = torch.cat([p for p, _ in parts]), torch.cat([g for _, g in parts])
    together = vit(patches, grids)
    alone = torch.cat([vit(*part) for part in parts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    each = torch.cat([head(vit(*part), part[1]) for part in parts])
    torch.testing.assert_close(head(together, grids), each, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_image_in_a_mixed_batch_is_exactly_isolated():
    torch.manual_seed(0)
    vit = ViT(TINY)
    first, second = patches_of(torch.randn(1, 3, 16, 24)), patches_of(torch.randn(1, 3, 16, 16))
    grids = torch.cat([first[1], second[1]])
    before = vit(torch.cat([first[0], second[0]]), grids)
    after = vit(torch.cat([first[0], second[0] + 1]), grids)
    assert torch.equal(before[:6], after[:6])
    assert not torch.equal(before[6:], after[6:])


SIDES = st.integers(1, 300)


@settings(max_examples=60, deadline=None)
@given(
    SIDES, SIDES, st.sampled_from([4, 8, 14]), st.integers(1, 60), st.sampled_from([32, 64, 224])
)
def test_fit_keeps_step_budget_size_and_aspect(width, height, step, budget, size):
    result = fit(PIL.Image.new("RGB", (width, height)), size, step, budget)
    w, h = result.size
    assert w % step == 0
    assert h % step == 0
    assert (w // step) * (h // step) <= budget
    assert max(w, h) <= max(size, step)
    # Rounding down a side costs less than one step: the aspect is kept up to that, unless a side
    # is already the smallest there is.
    if min(w, h) > step:
        assert (w - step) / (h + step) <= width / height <= (w + step) / (h - step)


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.sampled_from([16, 64]))
def test_fit_of_fixed_resolution_squeezes(width, height, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = PIL.Image.fromarray(pixels)
    expected = image.resize((size, size), PIL.Image.Resampling.BICUBIC)
    result = fit(image, size, 8, None)
    assert result.size == (size, size)
    assert np.array_equal(np.asarray(result), np.asarray(expected))


def test_pixels_come_back_from_their_array():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    array = to_array(PIL.Image.fromarray(levels))
    assert array.dtype == np.float32
    assert array.min() == -1
    assert array.max() == 1
    assert np.array_equal(np.asarray(from_array(array)), levels)


CONTRASTIVE = ContrastiveConfig(
    vision=dataclasses.replace(TINY, layers=1),
    embedding=16,
    text_width=16,
    text_layers=1,
    vocabulary=20,
    context=6,
)


def images(count=8, captions=4):
    """Distinct noise with one of a few captions each, of unequal lengths."""
    torch.manual_seed(1)
    patches, grids = patches_of(torch.randn(count, 3, 32, 32))
    lengths = torch.arange(captions) % 3 + 2
    texts = torch.randint(1, 20, (captions, 4)) * (torch.arange(4) < lengths[:, None])
    match = F.one_hot(torch.arange(count) % captions, captions).bool()
    return ImageBatch(patches, grids, texts, lengths, match)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_contrastive_loss_falls_in_a_small_overfit(kind):
    torch.manual_seed(0)
    model, batch = DualEncoder(dataclasses.replace(CONTRASTIVE, loss=kind)), images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    values = []
    for _ in range(30):
        loss = model.loss(batch)
        assert loss.count == 8
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
        values.append(loss.sum.item() / loss.count)
    assert values[-1] < 0.5 * values[0]
    assert model.loss(batch).numbers()["batch_accuracy"] == (8.0, 8)


@torch.no_grad()
def test_padding_of_texts_changes_nothing():
    torch.manual_seed(0)
    model, batch = DualEncoder(CONTRASTIVE), images()
    wider = F.pad(batch.texts, (0, 2), value=7)
    torch.testing.assert_close(
        model.embed_texts(wider, batch.lengths),
        model.embed_texts(batch.texts, batch.lengths),
        atol=1e-6,
        rtol=1e-5,
    )


@torch.no_grad()
def test_zero_shot_weights_are_normalised_means():
    torch.manual_seed(0)
    model, batch = DualEncoder(CONTRASTIVE), images()
    pairs = list(zip(batch.texts, batch.lengths, strict=True))
    heads = zero_shot_weights(model, [pairs[:3], pairs[3:]])
    torch.testing.assert_close(heads.norm(dim=1), torch.ones(2))
    single = torch.stack([model.embed_texts(t[None], n[None])[0] for t, n in pairs])
    torch.testing.assert_close(single.norm(dim=1), torch.ones(4))
    mean = single[:3].mean(0)
    torch.testing.assert_close(heads[0], mean / mean.norm())
    torch.testing.assert_close(heads[1], single[3])


def test_groups_hold_every_parameter_once():
    model = DualEncoder(CONTRASTIVE)
    owned = [p for part in model.groups().values() for p in part.parameters()]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("trained", [("vision", "text"), ("text",)])
def test_cost_is_what_torch_counts(kind, trained):
    model, batch = DualEncoder(dataclasses.replace(CONTRASTIVE, loss=kind)), images()
    lengths = torch.full_like(batch.lengths, batch.texts.shape[1])  # padding is no cost of ours
    batch = dataclasses.replace(batch, lengths=lengths)
    for name, part in model.groups().items():
        part.requires_grad_(name in trained)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)
