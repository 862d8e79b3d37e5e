"""Precomputed codes: equal to fresh ones, mapped from disk, refused when another tokenizer's."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch

from chiasm.core.errors import CheckpointError
from chiasm.core.sample import Image, Sample, user
from chiasm.core.vocab import Vocabulary
from chiasm.data.shards import run_shards
from chiasm.data.tokens import Codes, read_tokens
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import AutoencoderConfig, FSQConfig, ResidualVQConfig

TINY = AutoencoderConfig(
    FSQConfig((4, 4)), 16, multipliers=(1, 1, 1), decoder_channels=64, decoder_blocks=1
)


def codec(seed=0, text=10, **changes):
    torch.manual_seed(seed)
    model = Autoencoder(dataclasses.replace(TINY, **changes))
    return UnifiedCodec(model, Vocabulary(text, model.quantizer.codes, 0, 1, 2, 3, 4))


def make_images(count):
    random = np.random.default_rng(0)
    return [
        Image(PIL.Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)))
        for _ in range(count)
    ]


def write_tokens(folder, images, maker, size=10_000):
    """How many images are stored, and the reasons for those that are not."""
    samples = [Sample((user(image),)) for image in images]
    done = run_shards(Codes(samples, maker, size), folder)
    bad = {where: why for one in done for where, why in one["unusable"].items()}
    return len(read_tokens(folder, maker)), bad


@pytest.mark.parametrize("quantizer", [FSQConfig((4, 4)), ResidualVQConfig(16, 4, 3)])
@pytest.mark.parametrize("shard", [2, 100])
def test_stored_codes_make_the_same_slots_without_the_network(tmp_path, quantizer, shard):
    maker, images = codec(quantizer=quantizer), make_images(5)
    expected = [slot.input_ids.tolist() for slot in maker.encode([i.load() for i in images])]
    assert write_tokens(tmp_path / "t", [*images, images[0]], maker, shard) == (5, {})
    # Another text vocabulary: codes do not depend on it, ids do.
    other = codec(text=33, quantizer=quantizer)
    other.stored = read_tokens(tmp_path / "t", other)
    assert len(other.stored) == 5
    calls = []
    other.autoencoder.encode = lambda pixels: calls.append(pixels)
    found = [slot.input_ids for slot in other.encode([i.load() for i in images])]
    assert not calls
    moved = [np.where(ids >= 33, ids - 23, ids).tolist() for ids in found]
    assert moved == expected
    assert all(ids.dtype == np.int64 for ids in found)


def test_unknown_images_are_encoded_in_their_place(tmp_path):
    maker, images = codec(), make_images(4)
    expected = [slot.input_ids.tolist() for slot in maker.encode([i.load() for i in images])]
    write_tokens(tmp_path / "t", [images[1], images[3]], maker)
    maker.stored = read_tokens(tmp_path / "t", maker)
    found = [slot.input_ids.tolist() for slot in maker.encode([i.load() for i in images])]
    assert found == expected


def test_files_are_small_and_mapped(tmp_path):
    maker = codec()
    write_tokens(tmp_path / "t", make_images(3), maker)
    stored = np.load(tmp_path / "t" / "shard-00000.codes.npy", mmap_mode="r")
    assert isinstance(stored, np.memmap)
    assert stored.dtype == np.uint16
    assert stored.shape == (3 * 16,)
    assert not list((tmp_path / "t").glob(".*.unfinished"))


def test_another_tokenizers_codes_are_refused(tmp_path):
    write_tokens(tmp_path / "t", make_images(2), codec(0))
    for other in (codec(1), codec(0, image_size=32)):
        with pytest.raises(CheckpointError, match="precompute them again with this tokenizer"):
            read_tokens(tmp_path / "t", other)
    assert codec(0).fingerprint == codec(0, text=50).fingerprint


def test_a_decoder_tuned_later_does_not_spoil_the_codes(tmp_path):
    maker = codec()
    before = maker.fingerprint
    with torch.no_grad():
        next(maker.autoencoder.decoder.parameters()).add_(1)
    assert maker.fingerprint == before
    with torch.no_grad():
        next(maker.autoencoder.encoder.parameters()).add_(1)
    assert maker.fingerprint != before


def test_broken_folders_and_images(tmp_path):
    maker, bad = codec(), Image(tmp_path / "missing.png", "data.jsonl:3")
    with pytest.raises(CheckpointError, match="chiasm precompute"):
        read_tokens(tmp_path, maker)
    count, skipped = write_tokens(tmp_path / "t", [*make_images(2), bad], maker, 2)
    assert count == 2
    assert list(skipped) == ["data.jsonl:3"]
    assert "no such image" in skipped["data.jsonl:3"]
    with pytest.raises(CheckpointError, match="made by other weights, settings or data"):
        write_tokens(tmp_path / "t", [*make_images(2), bad], codec(1), 2)
    (tmp_path / "t" / "shard-00000.codes.npy").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="precompute the codes again"):
        read_tokens(tmp_path / "t", maker)
    assert json.loads((tmp_path / "t" / "tokens.json").read_text())["codes"] == 16
