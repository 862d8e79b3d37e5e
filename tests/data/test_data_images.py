from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.batch import ImageBatch
from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, user
from chiasm.data.images import ImageProcessor, ImageStream, augment
from chiasm.data.quarantine import Quarantine
from chiasm.data.text import train_bpe

SIDE = 8


BARE = ImageProcessor(SIDE, SIDE)
CAPTIONED = ImageProcessor(SIDE, SIDE // 2, None, train_bpe(["caption 0 1 2"], 300), 16)


def image(seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def samples(count: int) -> list[Sample]:
    return [
        Sample((user(Image(image(i))),), str(i), meta={"caption": f"caption {i % 3}"})
        for i in range(count)
    ]


def broken(count: int, folder: Path) -> list[Sample]:
    """Every other one missing, the rest corrupt."""
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    names = ["missing.png", "corrupt.png"]
    return [
        Sample((user(Image(folder / names[i % 2], f"train.jsonl:{i}")),), f"bad-{i}")
        for i in range(count)
    ]


def take(stream: ImageStream, count: int) -> list[ImageBatch]:
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


def equal(a: ImageBatch, b: ImageBatch) -> bool:
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("image_patches", "image_grids", "texts", "lengths", "match")
        if getattr(a, name) is not None
    )
    return tensors and a.names == b.names


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.booleans(), st.integers(0, 99))
def test_augment_keeps_the_size_and_invents_no_colour(
    width: int, height: int, shift: int, mirror: bool, seed: int
):
    before = image(seed).resize((width, height))
    after = augment(before, np.random.default_rng(seed), shift, mirror)
    assert after.size == before.size
    colors = {color for _, color in before.getcolors(100)}
    assert {color for _, color in after.getcolors(100)} <= colors


def test_no_shift_and_no_mirror_is_the_identity():
    before = image(0)
    assert augment(before, np.random.default_rng(0), 0, False).tobytes() == before.tobytes()


def test_shift_moves_by_whole_pixels_and_fills_from_the_edge():
    before = np.asarray(image(0))
    padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {padded[y : y + SIDE, x : x + SIDE].tobytes() for y in range(5) for x in range(5)}
    moved = {augment(image(0), np.random.default_rng(i), 2, False).tobytes() for i in range(40)}
    assert moved <= windows
    assert len(moved) > 10


def stream(count: int = 3) -> ImageStream:
    return ImageStream(samples(7), CAPTIONED, count, 5, shift=2, mirror=True)


@pytest.mark.parametrize("done", [0, 1, 4, 9])
def test_a_restored_stream_yields_the_same_batches_bit_for_bit(done: int):
    original = stream()
    take(original, done)
    state = original.state_dict()
    restored = stream()
    restored.load_state_dict(state)
    for a, b in zip(take(original, 5), take(restored, 5), strict=True):
        assert equal(a, b)


def test_an_epoch_shows_every_image_once():
    names = [name for batch in take(stream(1), 14) for name in batch.names]
    assert sorted(names[:7]) == sorted(names[7:]) == list("0123456")
    assert names[:7] != names[7:]


def test_match_says_which_distinct_caption_describes_which_image():
    (batch,) = take(stream(7), 1)
    assert batch.texts is not None
    assert batch.lengths is not None
    assert batch.match is not None
    assert batch.match.shape == (7, 3)
    for name, row in zip(batch.names, batch.match, strict=True):
        (column,) = row.nonzero().flatten().tolist()
        ids = batch.texts[column, : batch.lengths[column]]
        assert CAPTIONED.tokenizer.decode(ids.tolist()) == f"caption {int(name) % 3}"


def test_bad_images_are_quarantined_and_counted_and_the_batch_is_full(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "logs" / "quarantine.jsonl")
    mixed = samples(4) + broken(3, tmp_path)
    source = ImageStream(mixed, BARE, 4, 0, quarantine=quarantine)
    for batch in take(source, 5):
        assert batch.images == 4
        assert len(batch.image_patches) == 4
        assert set(batch.names) <= set("0123")
    assert set(quarantine.reasons) == {"bad-0", "bad-1", "bad-2"}
    assert "no such image (train.jsonl:0)" in quarantine.reasons["bad-0"]
    assert "not a readable image" in quarantine.reasons["bad-1"]
    assert len((tmp_path / "logs" / "quarantine.jsonl").read_text().splitlines()) == 3


def test_a_batch_larger_than_the_set_meets_a_bad_image_often(tmp_path: Path):
    source = ImageStream(samples(2) + broken(1, tmp_path), BARE, 60, 0)
    assert take(source, 1)[0].images == 60


def test_more_than_half_bad_raises(tmp_path: Path):
    source = ImageStream(samples(2) + broken(3, tmp_path), BARE, 4, 0)
    with pytest.raises(DataError, match="3 of 5 samples cannot be used, more than 50%"):
        take(source, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_tiny_set_that_is_all_bad_raises(tmp_path: Path, count: int):
    with pytest.raises(DataError, match=f"{count} of {count} samples cannot be used"):
        take(ImageStream(broken(count, tmp_path), BARE, 2, 0), 1)


def test_bad_samples_that_share_an_id_raise_too(tmp_path: Path):
    same = [sample.replace(id="same") for sample in broken(4, tmp_path)]
    with pytest.raises(DataError, match="no image can be read"):
        take(ImageStream(same, BARE, 2, 0), 1)


def test_a_set_without_images_or_captions_is_refused():
    with pytest.raises(DataError, match=r"no sample has an image$"):
        ImageStream([Sample((user("?"),))], BARE, 1, 0)
    silent = [s.replace(meta={"caption": None}) for s in samples(2)]
    with pytest.raises(DataError, match="with a caption"):
        ImageStream(silent, CAPTIONED, 1, 0)


def test_texts_are_cut_and_padded():
    short = ImageProcessor(SIDE, SIDE, None, CAPTIONED.tokenizer, 3)
    texts, lengths = short.texts(["caption 0 1 2", "caption", ""])
    assert texts.shape == (3, 3)
    assert lengths.tolist()[0] == 3
    assert texts[1, lengths[1] :].eq(0).all()
    assert texts[2].eq(0).all()
