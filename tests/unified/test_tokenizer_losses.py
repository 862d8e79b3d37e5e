"""The ViT autoencoder, the perceptual and adversarial losses, the codebook's alarm."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from chiasm.core.batch import ImageBatch
from chiasm.core.errors import ConfigError
from chiasm.hub import autoencoder as hub
from chiasm.hub.load import load
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.code_meter import CodeMeter
from chiasm.unified.config import (
    AutoencoderConfig,
    FSQConfig,
    LFQConfig,
    ResidualVQConfig,
    TokenizerViT,
    VQConfig,
)
from chiasm.unified.discriminator import Discriminator, adaptive_weight
from chiasm.unified.perceptual import Perceptual
from chiasm.vision.config import ViTConfig
from chiasm.vision.patches import patchify
from chiasm.vision.vit import ViT

VIT = TokenizerViT(patch_size=4, width=32, layers=1, heads=2, mlp_ratio=2)
TINY = AutoencoderConfig(
    quantizer=FSQConfig((4, 4)),
    image_size=16,
    multipliers=(1, 1, 1),
    decoder_channels=64,
    decoder_blocks=1,
)
QUANTIZERS = [FSQConfig((4, 4)), LFQConfig(4), VQConfig(16, 4), ResidualVQConfig(16, 4, 2)]


def tiny(**changes):
    torch.manual_seed(0)
    return Autoencoder(dataclasses.replace(TINY, **changes))


def batch_of(images, stride=4):
    patches = [patchify(x.permute(1, 2, 0).numpy(), stride) for x in images]
    grids = torch.tensor([[x.shape[1] // stride, x.shape[2] // stride] for x in images])
    return ImageBatch(torch.from_numpy(np.concatenate(patches)), grids)


def images(count=4, seed=0):
    torch.manual_seed(seed)
    return torch.rand(count, 3, 16, 16) * 2 - 1


def encoder():
    torch.manual_seed(1)
    return ViT(ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2))


@torch.no_grad()
@pytest.mark.parametrize("vit", [None, VIT])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (8, 20)])
def test_every_quantizer_in_both_networks_at_any_size(vit, quantizer, height, width):
    model = tiny(quantizer=quantizer, vit=vit).eval()
    codes = model.encode(torch.randn(2, 3, height, width))
    assert codes.shape == (2, height // 4, width // 4 * model.quantizer.depth)
    assert 0 <= codes.min() <= codes.max() < 16
    pixels = model.decode(codes)
    assert pixels.shape == (2, 3, height, width)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_vit_learns_everywhere_and_its_loss_falls(quantizer):
    model = tiny(quantizer=quantizer, vit=VIT)
    torch.manual_seed(0)
    batch = batch_of(list(torch.rand(8, 3, 1, 1).mul(2).sub(1).expand(8, 3, 16, 16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        values.append(loss.numbers()["mse"][0] / 8)
    assert values[-1] < 0.5 * values[0]


def test_cost_of_the_vit_is_what_torch_counts():
    model, batch = tiny(vit=VIT), batch_of(list(images()))
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert model.cost(batch).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_absolute_error():
    model, x = tiny(edge_loss_weight=0.0, pixel_loss="l1"), images(2)
    again = model.decoder(model.quantizer.lookup(model.encode(x)).movedim(-1, 1))
    expected = (again - x).abs().flatten(1).mean(1).sum()
    torch.testing.assert_close(model.loss(batch_of(list(x))).sum, expected, atol=1e-5, rtol=1e-4)


def test_perceptual_distance_equals_the_encoder_by_hand():
    eye = encoder()
    measure = Perceptual(eye)
    a, b = images(2, 0), images(2, 1)
    for k, distance in enumerate(measure(a, b)):
        sides = []
        for image in (a[k], b[k]):
            patches = torch.from_numpy(patchify(image.permute(1, 2, 0).numpy(), 8))
            sides.append(F.normalize(eye(patches, torch.tensor([[2, 2]])), dim=-1))
        torch.testing.assert_close(distance, (sides[0] - sides[1]).square().sum(-1).mean())
    assert measure(a, a).abs().max() < 1e-6
    assert measure(F.interpolate(a, size=(8, 24)), F.interpolate(b, size=(8, 24))).shape == (2,)


def test_the_perceptual_loss_adds_its_weight_and_trains_the_autoencoder_only():
    plain, watched = tiny(), tiny(perceptual=0.5)
    watched.watch(encoder())
    batch = batch_of(list(images()))
    a, b = plain.loss(batch), watched.loss(batch)
    assert (b.sum - a.sum).item() == pytest.approx(0.5 * b.numbers()["perceptual"][0], rel=1e-4)
    b.sum.backward()
    assert all(p.grad is None for p in watched.perceptual.parameters())
    assert all(p.grad is not None for p in watched.encoder.parameters())
    with pytest.raises(ConfigError, match="call watch"):
        tiny(perceptual=0.5).loss(batch)


def test_the_two_sides_of_the_contest_have_disjoint_gradients():
    judge, real = Discriminator(), images(2)
    drawn = images(2, 1).requires_grad_()
    judge.fooled(drawn).backward()
    assert drawn.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())
    drawn.grad = None
    judge.hinge(real, drawn).backward()
    assert drawn.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    with torch.no_grad():
        said = [judge(x).flatten().tolist() for x in (real, drawn)]
        hinge = [
            np.mean([max(0, 1 - s * y) for y in ys]) for s, ys in zip((1, -1), said, strict=True)
        ]
        assert judge.hinge(real, drawn).item() == pytest.approx(sum(hinge) / 2, rel=1e-4)
        assert judge.fooled(drawn).item() == pytest.approx(-np.mean(said[1]), abs=1e-5)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    w = torch.tensor([3.0, -1.0], requires_grad=True)
    a, b = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(a, b, w).item() == pytest.approx(5 / 0.5001)
    assert adaptive_weight(a, b, w.detach()).item() == 1


def test_the_discriminator_starts_when_it_is_told_and_leaves_with_the_training(tmp_path):
    """Through the common loop: nothing of it before its step, both sides after it."""
    torch.manual_seed(0)
    model = tiny(adversarial=0.5, adversarial_start=3, vit=VIT)
    before = [p.clone() for p in model.discriminator.parameters()]

    class Images:
        def __iter__(self):
            while True:
                yield batch_of(list(images()))

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    rates = {"encoder": 1e-3, "decoder": 1e-3, "discriminator": 1e-3}
    stage = Stage(
        "both", 5, rates, schedule="constant", warmup_ratio=0.0, autocast="none", log_every=1
    )
    train(model, [stage], lambda _: Images(), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert ["hinge" in line for line in lines] == [False, False, False, True, True]
    assert all('"code_usage"' in line and '"dead_codes"' in line for line in lines)
    assert int(model.discriminator.seen) == 5
    after = list(model.discriminator.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    hub.save(tmp_path / "saved", model)
    again, _ = load(tmp_path / "saved")
    assert again.discriminator is None
    assert torch.equal(again.encode(images()), model.encode(images()))


def test_a_contest_pulls_drawings_towards_what_looks_real():
    """A step of the autoencoder along the whole gradient raises the verdict of a fixed judge."""
    torch.manual_seed(0)
    model = tiny(adversarial=10.0, vit=VIT)
    batch = batch_of(list(images()))
    loss = model.loss(batch)
    loss.sum.backward()
    fooled = loss.numbers()["fooled"][0]
    with torch.no_grad():
        for p in (*model.encoder.parameters(), *model.decoder.parameters()):
            p.sub_(1e-4 * p.grad)
    assert model.loss(batch).numbers()["fooled"][0] < fooled


def test_the_meter_counts_as_numpy_and_warns_once_a_fall(capsys):
    random = np.random.default_rng(0)
    meter = CodeMeter(6, floor=0.6, window=4)
    weights, seen, said = np.zeros(6), [], []
    allowed = [6] * 4 + [2] * 6 + [6] * 5 + [2] * 6
    for kinds in allowed:
        codes = random.integers(0, kinds, 40)
        seen.append(set(codes.tolist()))
        weights = 0.75 * weights + np.bincount(codes, minlength=6)
        found = meter.add(torch.bincount(torch.from_numpy(codes), minlength=6))
        meter.watch({name: float(value) for name, (value, _) in found.items()})
        p = weights[weights > 0] / weights.sum()
        expected = np.exp(-(p * np.log(p)).sum())
        assert found["codebook_perplexity"][0] == pytest.approx(expected, rel=1e-4)
        used = set().union(*seen[-4:]) if len(seen) >= 4 else set(range(6))
        assert found["dead_codes"][0] == 6 - len(used)
        assert found["code_usage"][0] == pytest.approx(len(used) / 6)
        said.append(capsys.readouterr().err)
    warned = [n for n, text in enumerate(said) if text]
    assert warned == [7, 18]  # a window after each fall, and not again while it lasts
    assert all(said[n].count("\n") == 1 for n in warned)
    assert "4 of 6 codes" in said[7]
