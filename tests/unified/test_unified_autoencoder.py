"""The image tokenizer and its codec: shapes, mixed resolutions, round trips."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from chiasm.core.batch import ImageBatch
from chiasm.core.vocab import Vocabulary
from chiasm.unified.autoencoder import Autoencoder, codebook_use, details, to_pixels
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import AutoencoderConfig, FSQConfig, VQConfig
from chiasm.vision.patches import patchify

TINY = AutoencoderConfig(
    quantizer=FSQConfig((4, 4)),
    image_size=16,
    base_channels=32,
    multipliers=(1, 1, 1),
    decoder_channels=64,
    decoder_blocks=1,
)


def tiny(**changes):
    torch.manual_seed(0)
    return Autoencoder(dataclasses.replace(TINY, **changes))


def batch_of(images, stride=4):
    """[3 H W] images of any sizes as the loop's batch."""
    patches = [patchify(x.permute(1, 2, 0).numpy(), stride) for x in images]
    grids = torch.tensor([[x.shape[1] // stride, x.shape[2] // stride] for x in images])
    return ImageBatch(torch.from_numpy(np.concatenate(patches)), grids)


@torch.no_grad()
@pytest.mark.parametrize("quantizer", [FSQConfig((4, 4)), VQConfig(16, 4)])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (8, 20), (12, 4)])
def test_shapes_for_sizes_the_stride_divides(quantizer, height, width):
    model = tiny(quantizer=quantizer).eval()
    codes = model.encode(torch.randn(2, 3, height, width))
    assert codes.shape == (2, height // 4, width // 4)
    assert codes.dtype == torch.long
    assert codes.min() >= 0
    assert codes.max() < 16
    pixels = model.decode(codes)
    assert pixels.shape == (2, 3, height, width)
    assert pixels.abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_stride_follows_the_multipliers(levels):
    model = tiny(multipliers=(1,) * levels).eval()
    side = 2 ** (levels - 1)
    assert model.config.stride == side
    assert model.encode(torch.zeros(1, 3, 2 * side, side)).shape == (1, 2, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 4, 8]))
def test_to_pixels_undoes_patchify(count, h, w, size):
    pixels = torch.randn(count, 3, h * size, w * size)
    patches = [patchify(x.permute(1, 2, 0).numpy(), size) for x in pixels]
    again = to_pixels(torch.from_numpy(np.concatenate(patches)), (h, w), size)
    assert torch.equal(again, pixels)


def test_loss_of_mixed_grids_is_the_sum_of_each_image_alone():
    model = tiny()
    images = [torch.rand(3, h, w) * 2 - 1 for h, w in ((16, 16), (8, 12), (16, 16), (4, 8))]
    together = model.loss(batch_of(images))
    alone = [model.loss(batch_of([x])) for x in images]
    assert together.count == 4
    torch.testing.assert_close(together.sum, torch.stack([a.sum for a in alone]).sum())
    apart = sum(a.numbers()["mse"][0] for a in alone)
    assert together.numbers()["mse"][0] == pytest.approx(apart, 1e-4)
    used = {int(c) for x in images for c in model.encode(x[None]).unique()}
    assert together.numbers()["codes_in_batch"] == (len(used), 1)


def test_loss_is_the_squared_error_of_the_reconstruction():
    model, x = tiny(edge_loss_weight=0.0), torch.rand(2, 3, 16, 16) * 2 - 1
    loss = model.loss(batch_of(list(x)))
    again = model.decoder(model.quantizer.lookup(model.encode(x)).movedim(-1, 1))
    expected = (again - x).square().flatten(1).mean(1).sum()
    torch.testing.assert_close(loss.sum, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantizer", [FSQConfig((4, 4)), VQConfig(16, 4)])
def test_every_parameter_learns_and_the_loss_falls(quantizer):
    torch.manual_seed(0)
    model = tiny(quantizer=quantizer)
    flat = torch.rand(8, 3, 1, 1).mul(2).sub(1).expand(8, 3, 16, 16)
    batch = batch_of(list(flat))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(15):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        values.append(loss.numbers()["mse"][0] / 8)
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("quantizer", [FSQConfig((4, 4)), VQConfig(256, 16)])
def test_cost_is_what_torch_counts(quantizer):
    model, batch = tiny(quantizer=quantizer), batch_of([torch.zeros(3, 16, 16)] * 4)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    cost = model.cost(batch)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert (cost.tokens, cost.images) == (64, 4)
    assert model.training


def codec(image_size=16):
    model = tiny(image_size=image_size)
    vocabulary = Vocabulary(10, 16, pad=0, begin=1, end=2, begin_image=3, end_image=4)
    return UnifiedCodec(model, vocabulary)


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def test_codec_slots_are_begin_codes_end():
    maker = codec()
    slots = maker.encode([noise(16, 16), noise(40, 9)])
    assert maker.codes_per_image == 16
    for slot in slots:
        assert slot.image_patches is None
        assert slot.grid == (4, 4)
        assert slot.input_ids.dtype == np.int64
        assert (slot.input_ids[0], slot.input_ids[-1]) == (3, 4)
        assert len(slot.input_ids) == 18
        assert ((slot.input_ids[1:-1] >= 10) & (slot.input_ids[1:-1] < 26)).all()
    assert slots[0].input_ids.tolist() == maker.encode([noise(16, 16)])[0].input_ids.tolist()


@torch.no_grad()
def test_codec_decodes_what_the_autoencoder_does():
    maker, image = codec(), noise(16, 16)
    (slot,) = maker.encode([image])
    drawn = maker.decode(torch.from_numpy(slot.input_ids[1:-1]))
    assert drawn.size == (16, 16)
    pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    again = maker.autoencoder.decode(maker.autoencoder.encode(pixels))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(np.asarray(drawn), (again + 1) * 127.5, atol=0.51)


def test_codec_refuses_wrong_counts_and_foreign_ids():
    maker = codec()
    with pytest.raises(ValueError, match="16 codes, got 15"):
        maker.decode(torch.full((15,), 10))
    for bad in (9, 26, -1):
        ids = torch.full((16,), 10)
        ids[7] = bad
        with pytest.raises(ValueError, match=f"id {bad} is not an image code"):
            maker.decode(ids)


def test_codec_refuses_a_vocabulary_of_another_size():
    with pytest.raises(ValueError, match="has 15 image codes, the image tokenizer 16"):
        UnifiedCodec(tiny(), Vocabulary(10, 15, 0, 1, 2, 3, 4))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_codebook_use_equals_numpy(codes):
    frequency = np.array([codes.count(c) for c in range(7)]) / len(codes)
    entropy = -sum(p * np.log(p) for p in frequency if p)
    found = codebook_use(torch.tensor(codes)[None, None], 7)
    assert found["code_usage"] == pytest.approx(len(set(codes)) / 7)
    assert found["codebook_perplexity"] == pytest.approx(np.exp(entropy))


def test_details_are_where_an_image_changes():
    """A flat image has none; of a square on a flat ground, its edge is all there is."""
    flat = torch.full((1, 3, 24, 24), 0.8)
    assert details(flat).sum() == 0
    square = flat.clone()
    square[..., 8:16, 8:16] = -1
    found = details(square)[0, 0].bool()
    edge = torch.zeros(24, 24, dtype=torch.bool)
    edge[6:18, 6:18] = True
    edge[10:14, 10:14] = False
    assert not found[~edge].any()
    assert found[8:16, 8].all()


def test_the_logged_error_is_not_weighted():
    torch.manual_seed(1)
    batch = batch_of([torch.rand(3, 16, 16) * 2 - 1 for _ in range(2)])
    plain, weighted = (tiny(edge_loss_weight=detail).loss(batch) for detail in (0.0, 5.0))
    assert plain.numbers()["mse"] == weighted.numbers()["mse"]
    assert weighted.sum > 2 * plain.sum
