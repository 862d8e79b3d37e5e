"""Frozen features: the same losses, one encoding an image, and nothing old or broken is read."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from chiasm.core.batch import ImageBatch
from chiasm.core.progress import silent
from chiasm.data.objectives import chat
from chiasm.data.stream import SampleStream
from chiasm.train.feature_cache import (
    RECORD,
    FeatureCache,
    open_cache,
    preprocessing_hash,
    weights_hash,
)
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

IMAGES = 4  # in toy.samples()
FROZEN = Stage(
    "s", 12, lr={"projector": 1e-2, "language_model": 1e-3}, autocast="none", log_every=1
)
GRIDS = torch.tensor([[3, 3], [2, 4], [3, 3]])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Counted(ViT):
    """Notes how many images it was given at a time."""

    def __init__(self, config):
        super().__init__(config)
        self.given = []

    def forward(self, patches, grids):
        self.given.append(len(grids))
        return super().forward(patches, grids)


def encoder(seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"image_size": 24, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, **settings}
    return Counted(ViTConfig(**settings)).eval()


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(GRIDS.prod(1).sum()), 48, generator=generator)


def close(features, expected):
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def run(toy, folder, stages, **settings):
    """(losses, FLOPs, images encoded, model) of a training on the toy samples."""
    model, processor = toy.build(**settings)
    seen = []
    inner = model.vision.forward
    model.vision.forward = lambda p, g: (seen.append(len(g)), inner(p, g))[1]
    ledger = train(
        model,
        stages,
        lambda _: SampleStream(toy.samples(), [chat], processor, 100, 0),
        folder,
        show=silent,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], ledger.flops, sum(seen), model


def test_the_loss_curve_is_the_same_and_every_image_is_encoded_once(toy, tmp_path):
    plain = run(toy, tmp_path / "plain", [replace(FROZEN, feature_cache=0.0)])
    cached = run(toy, tmp_path / "cached", [FROZEN])
    assert plain[2] > 4 * IMAGES  # several epochs
    assert cached[2] == IMAGES
    # In other company an image's features differ by rounding in the last bit.
    assert cached[0] == pytest.approx(plain[0], rel=1e-5)
    torch.testing.assert_close(cached[3].state_dict(), plain[3].state_dict(), atol=1e-4, rtol=1e-3)
    assert cached[1] < plain[1]
    assert cached[3].memory is None
    again = run(toy, tmp_path / "again", [FROZEN])
    assert (again[0], again[2]) == (cached[0], 0)


def test_with_recomputed_blocks_and_in_bfloat16_too(toy, tmp_path):
    stage = replace(FROZEN, gradient_checkpointing=True, autocast="bfloat16")
    plain = run(toy, tmp_path / "plain", [replace(stage, feature_cache=0.0)])
    cached = run(toy, tmp_path / "cached", [stage])
    assert cached[2] == IMAGES
    # Images that are encoded in other company are rounded otherwise.
    assert cached[0] == pytest.approx(plain[0], rel=0.02)
    exact = run(toy, tmp_path / "exact", [FROZEN])
    assert exact[2] == IMAGES  # rounded weights are other weights


def test_a_stage_that_trains_the_encoder_remembers_nothing(toy, tmp_path, place):
    lr = {"vision": 1e-3, "projector": 1e-2}
    _, _, seen, _ = run(toy, tmp_path / "run", [replace(FROZEN, lr=lr)])
    assert seen > 4 * IMAGES
    assert not place.exists()


def test_after_a_stage_that_trained_it_the_encoder_is_another(toy, tmp_path, place):
    both = [replace(FROZEN, name="a", steps=2), replace(FROZEN, name="b", steps=2)]
    between = replace(FROZEN, name="t", steps=1, lr={"vision": 1e-2, "projector": 1e-2})
    run(toy, tmp_path / "run", [both[0], between, both[1]])
    assert len(list(place.iterdir())) == 2


@torch.no_grad()
def test_features_come_back_as_they_were(place):
    tower, patches = encoder(), images()
    expected = tower(patches, GRIDS)
    cache = open_cache(tower, 1e9)
    for _ in range(3):
        assert torch.equal(cache(tower, ImageBatch(patches, GRIDS)), expected)
    assert tower.given == [3, 3]
    assert len(cache.encoded) == 0
    twice = torch.cat([patches, patches]), torch.cat([GRIDS, GRIDS])
    fresh = FeatureCache(place / "other", 1e9)
    (place / "other").mkdir()
    assert torch.equal(fresh(tower, ImageBatch(*twice)), torch.cat([expected, expected]))
    assert tower.given[-1] == 3  # twice in a batch is once encoded


@torch.no_grad()
def test_other_weights_preprocessing_or_pixels_are_encoded_anew():
    patches = images()

    def encoded(tower, patches, grids=GRIDS):
        before = sum(tower.given)
        result = open_cache(tower, 1e9)(tower, ImageBatch(patches, grids))
        close(result, tower(patches, grids))
        tower.given.pop()
        return sum(tower.given) - before

    tower = encoder()
    assert encoded(tower, patches) == 3
    assert encoded(tower, patches) == 0
    assert encoded(encoder(), patches) == 0  # equal weights in another object
    tower.layers[1].mlp.fc1.weight[0, 0] += 1e-6
    assert encoded(tower, patches) == 3
    larger = encoder(max_patches=40)
    assert weights_hash(larger) == weights_hash(encoder())
    assert preprocessing_hash(larger) != preprocessing_hash(encoder())
    assert encoded(larger, patches) == 3
    patches[0, 0] += 1e-3
    assert encoded(encoder(), patches) == 1
    turned = torch.tensor([[3, 3], [4, 2], [3, 3]])
    assert encoded(encoder(), patches, turned) == 1


def filled(place):
    """A cache with three images: its folder, data file and index file."""
    tower = encoder()
    cache = open_cache(tower, 1e9)
    cache(tower, ImageBatch(images(), GRIDS))
    cache.close()
    (data,), (index,) = cache.folder.glob("*.data"), cache.folder.glob("*.index")
    return tower, data, index


@torch.no_grad()
@pytest.mark.parametrize("cut", range(0, 3 * RECORD.size + 1, 13))
def test_an_index_cut_anywhere_leaves_the_whole_records(place, cut):
    tower, _, index = filled(place)
    index.write_bytes(index.read_bytes()[:cut])
    cache = open_cache(tower, 1e9)
    close(cache(tower, ImageBatch(images(), GRIDS)), tower(images(), GRIDS))
    assert len(cache.encoded) == 3 - cut // RECORD.size


@torch.no_grad()
@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "zero"])
def test_harmed_features_are_encoded_again(place, harm):
    tower, data, _ = filled(place)
    whole = data.read_bytes()
    middle = len(whole) // 2
    changed = {
        "cut": whole[:middle],
        "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "zero": bytes(len(whole)),
    }
    data.unlink()
    if harm in changed:
        data.write_bytes(changed[harm])
    for expected in ({"cut": 2, "flip": 1}.get(harm, 3), 0):
        cache = open_cache(tower, 1e9)
        close(cache(tower, ImageBatch(images(), GRIDS)), tower(images(), GRIDS))
        assert len(cache.encoded) == expected
        cache.close()


@torch.no_grad()
def test_two_writers_at_once_do_not_harm_each_other(place):
    tower = encoder()
    one, two = open_cache(tower, 1e9), open_cache(tower, 1e9)
    for seed in range(4):
        for cache in (one, two):
            cache(tower, ImageBatch(images(seed), GRIDS))
    tower.given.clear()
    last = open_cache(tower, 1e9)
    for seed in range(4):
        assert torch.equal(last(tower, ImageBatch(images(seed), GRIDS)), tower(images(seed), GRIDS))
    assert tower.given == [3] * 4  # the references alone


@torch.no_grad()
def test_a_full_cache_encodes_the_rest_every_time(place):
    tower = encoder()
    cache = open_cache(tower, 1500)  # two images of 9 and 8 patches of 16 numbers
    with pytest.warns(UserWarning, match="the feature cache is full"):
        cache(tower, ImageBatch(images(), GRIDS))
    for _ in range(2):
        close(cache(tower, ImageBatch(images(), GRIDS)), tower(images(), GRIDS))
        assert len(cache.encoded) == 1
    assert sum(f.stat().st_size for f in cache.folder.iterdir()) <= 1500


def test_the_encoder_used_longest_ago_makes_room(place):
    for number in range(3):
        tower = encoder(number)
        cache = open_cache(tower, 1e9)
        cache(tower, ImageBatch(images(), GRIDS))
        os.utime(cache.folder, (number, number))
    open_cache(encoder(0), 4000)  # each holds 1,784 bytes
    held = {folder.name.split("-")[0] for folder in place.iterdir()}
    assert held == {weights_hash(encoder(0)), weights_hash(encoder(2))}


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {here!r})
from test_feature_cache import GRIDS, ImageBatch, encoder, open_cache, images
torch.set_grad_enabled(False)
tower = encoder()
cache = open_cache(tower, 1e9)
cache(tower, ImageBatch(images(0), GRIDS))

class Dying:
    def __init__(self, file):
        self.file, self.name, self.tell = file, file.name, file.tell
        self.flush = file.flush
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

files = list(cache._files)
files[{which}] = Dying(files[{which}])
cache._files = tuple(files)
cache(tower, ImageBatch(images(1), GRIDS))
"""


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1], ids=["in the features", "in the index"])
def test_a_writer_killed_in_the_middle_loses_what_it_was_writing(place, which):
    code = KILLED.format(here=os.path.dirname(__file__), which=which)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    tower = encoder()
    for expected in (3, 0):
        cache = open_cache(tower, 1e9)
        assert torch.equal(cache(tower, ImageBatch(images(0), GRIDS)), tower(images(0), GRIDS))
        assert len(cache.encoded) == 0
        assert torch.equal(cache(tower, ImageBatch(images(1), GRIDS)), tower(images(1), GRIDS))
        assert len(cache.encoded) == expected
        cache.close()
