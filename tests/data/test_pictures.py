from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.batch import PictureBatch
from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Sample, question
from chiasm.data.pictures import PictureStream, augment, pad_texts
from chiasm.data.quarantine import Quarantine

SIDE = 8


def to_patches(picture: PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """One patch a row of pixels."""
    pixels = np.asarray(picture, np.float32) / 127.5 - 1
    return pixels.reshape(pixels.shape[0], -1), (pixels.shape[0], 1)


def picture(seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def samples(count: int) -> list[Sample]:
    return [
        Sample((question(Image(picture(i))),), str(i), meta={"caption": f"caption {i % 3}"})
        for i in range(count)
    ]


def broken(count: int, folder: Path) -> list[Sample]:
    """Every other one missing, the rest corrupt."""
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    names = ["missing.png", "corrupt.png"]
    return [
        Sample((question(Image(folder / names[i % 2], f"train.jsonl:{i}")),), f"bad-{i}")
        for i in range(count)
    ]


def take(stream: PictureStream, count: int) -> list[PictureBatch]:
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


def equal(a: PictureBatch, b: PictureBatch) -> bool:
    tensors = all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("patches", "grids", "texts", "lengths", "match")
        if getattr(a, name) is not None
    )
    return tensors and a.names == b.names


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.booleans(), st.integers(0, 99))
def test_augment_keeps_the_size_and_invents_no_colour(
    width: int, height: int, shift: int, mirror: bool, seed: int
):
    before = picture(seed).resize((width, height))
    after = augment(before, np.random.default_rng(seed), shift, mirror)
    assert after.size == before.size
    colors = {color for _, color in before.getcolors(100)}
    assert {color for _, color in after.getcolors(100)} <= colors


def test_no_shift_and_no_mirror_is_the_identity():
    before = picture(0)
    assert augment(before, np.random.default_rng(0), 0, False).tobytes() == before.tobytes()


def test_shift_moves_by_whole_pixels_and_fills_from_the_edge():
    before = np.asarray(picture(0))
    padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {padded[y : y + SIDE, x : x + SIDE].tobytes() for y in range(5) for x in range(5)}
    moved = {augment(picture(0), np.random.default_rng(i), 2, False).tobytes() for i in range(40)}
    assert moved <= windows
    assert len(moved) > 10


def stream(count: int = 3) -> PictureStream:
    encode = lambda text: list(text.encode())  # noqa: E731
    return PictureStream(samples(7), to_patches, count, 5, encode, 16, shift=2, mirror=True)


@pytest.mark.parametrize("done", [0, 1, 4, 9])
def test_a_restored_stream_yields_the_same_batches_bit_for_bit(done: int):
    original = stream()
    take(original, done)
    state = original.state_dict()
    restored = stream()
    restored.load_state_dict(state)
    for a, b in zip(take(original, 5), take(restored, 5), strict=True):
        assert equal(a, b)


def test_an_epoch_shows_every_picture_once():
    names = [name for batch in take(stream(1), 14) for name in batch.names]
    assert sorted(names[:7]) == sorted(names[7:]) == list("0123456")
    assert names[:7] != names[7:]


def test_match_says_which_distinct_caption_describes_which_picture():
    (batch,) = take(stream(7), 1)
    assert batch.texts is not None
    assert batch.lengths is not None
    assert batch.match is not None
    assert batch.match.shape == (7, 3)
    for name, row in zip(batch.names, batch.match, strict=True):
        (column,) = row.nonzero().flatten().tolist()
        ids = batch.texts[column, : batch.lengths[column]]
        assert bytes(ids.tolist()).decode() == f"caption {int(name) % 3}"


def test_bad_pictures_are_quarantined_and_counted_and_the_batch_is_full(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "logs" / "quarantine.jsonl")
    mixed = samples(4) + broken(3, tmp_path)
    source = PictureStream(mixed, to_patches, 4, 0, quarantine=quarantine)
    for batch in take(source, 5):
        assert batch.images == 4
        assert len(batch.patches) == 4 * SIDE
        assert set(batch.names) <= set("0123")
    assert set(quarantine.reasons) == {"bad-0", "bad-1", "bad-2"}
    assert "no such image (train.jsonl:0)" in quarantine.reasons["bad-0"]
    assert "not a readable image" in quarantine.reasons["bad-1"]
    assert len((tmp_path / "logs" / "quarantine.jsonl").read_text().splitlines()) == 3


def test_a_batch_larger_than_the_set_meets_a_bad_picture_often(tmp_path: Path):
    source = PictureStream(samples(2) + broken(1, tmp_path), to_patches, 60, 0)
    assert take(source, 1)[0].images == 60


def test_more_than_half_bad_raises(tmp_path: Path):
    source = PictureStream(samples(2) + broken(3, tmp_path), to_patches, 4, 0)
    with pytest.raises(DataError, match="3 of 5 samples cannot be used, more than 50%"):
        take(source, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_tiny_set_that_is_all_bad_raises(tmp_path: Path, count: int):
    with pytest.raises(DataError, match=f"{count} of {count} samples cannot be used"):
        take(PictureStream(broken(count, tmp_path), to_patches, 2, 0), 1)


def test_bad_samples_that_share_an_id_raise_too(tmp_path: Path):
    same = [sample.replace(id="same") for sample in broken(4, tmp_path)]
    with pytest.raises(DataError, match="no picture can be read"):
        take(PictureStream(same, to_patches, 2, 0), 1)


def test_a_set_without_pictures_or_captions_is_refused():
    with pytest.raises(DataError, match=r"no sample has a picture$"):
        PictureStream([Sample((question("?"),))], to_patches, 1, 0)
    silent = [s.replace(meta={"caption": None}) for s in samples(2)]
    with pytest.raises(DataError, match="with a caption"):
        PictureStream(silent, to_patches, 1, 0, encode=lambda text: [1])


def test_pad_texts_cuts_and_pads():
    texts, lengths = pad_texts([[1, 2, 3], [4], []], 2)
    assert texts.tolist() == [[1, 2], [4, 0], [0, 0]]
    assert lengths.tolist() == [2, 1, 1]
