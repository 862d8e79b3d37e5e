"""chiasm precompute: features that training finds, codes, arrays of jobs, other weights refused."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from chiasm import cli
from chiasm.core.batch import ImageBatch
from chiasm.core.errors import CheckpointError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.load import load_samples
from chiasm.data.shards import run_shards
from chiasm.data.text import train_bpe
from chiasm.hub import contrastive
from chiasm.hub.load import load
from chiasm.recipes.precompute import PrecomputePlan
from chiasm.train.feature_cache import open_cache
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.contrastive import DualEncoder


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    samples = [
        Sample(
            (user(Image(PIL.Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)))),
             assistant(f"noise {n}")), f"s{n}",
        )
        for n in range(7)
    ]  # fmt: skip
    write_messages(samples, tmp_path / "own" / "train.jsonl")
    write_messages(samples[:2], tmp_path / "own" / "test.jsonl")
    return tmp_path / "own"


def encoder(folder, seed=0):
    torch.manual_seed(seed)
    vision = replace(ContrastiveConfig().vision, width=32, layers=1, heads=2)
    config = replace(ContrastiveConfig(), vision=vision)
    words = train_bpe(["noise"] * 4, config.vocabulary)
    contrastive.save(folder, DualEncoder(config), contrastive.image_processor(config, words))
    return folder


def files(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_training_finds_the_features_of_its_own_encoder_only(tmp_path, data, monkeypatch):
    out = tmp_path / "features"
    plan = PrecomputePlan(encoder(tmp_path / "e"), str(data), 3, "none")
    done = run_shards(plan.work(), out)
    assert [one["images"] for one in done] == [3, 3, 1]
    monkeypatch.setenv("CHIASM_CACHE", str(out))
    dual, processor = load(tmp_path / "e")
    images = [s.images[0].load() for s in load_samples(str(data), "train")]
    patches, grids = processor.images(images)
    for parameter in dual.vision.parameters():
        parameter.requires_grad_(False)
    cache = open_cache(dual.vision, 1e9)
    found = cache(dual.vision, ImageBatch(patches, grids))
    assert len(cache.encoded) == 0
    torch.testing.assert_close(found, dual.vision(patches, grids), atol=1e-5, rtol=1e-5)
    other, _ = load(encoder(tmp_path / "other", 1))
    cache = open_cache(other.vision, 1e9)
    cache(other.vision, ImageBatch(patches, grids))
    cache.close()
    assert len(cache.encoded) == 7


def test_other_weights_are_refused(tmp_path, data):
    run_shards(PrecomputePlan(encoder(tmp_path / "a"), str(data), 3, "none").work(), tmp_path / "f")
    other = PrecomputePlan(encoder(tmp_path / "b", 1), str(data), 3, "none")
    with pytest.raises(CheckpointError, match="made by other weights"):
        run_shards(other.work(), tmp_path / "f")


def test_an_array_of_commands_makes_what_one_makes(tmp_path, data, capsys):
    part = encoder(tmp_path / "e")

    def run(out, *more):
        cli.main(["precompute", str(part), str(out), "--data", str(data), "--shard", "2",
                  "--autocast", "none", *more])  # fmt: skip
        return capsys.readouterr().out

    assert "4 shards, 7 images, 0 unusable" in run(tmp_path / "one")
    said = [run(tmp_path / "two", "--array-index", i, "--array-count", "2") for i in "10"]
    assert "others are not yet" in said[0]
    assert "complete, 4 shards" in said[1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
