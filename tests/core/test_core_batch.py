import numpy as np
import pytest
import torch

from chiasm.core.batch import IGNORE, Encoded, pack


def sample(first: int, length: int, patches: int = 0, name: str = "") -> Encoded:
    """Token t has id first+t; every other column is a distinct function of it."""
    ids = np.arange(first, first + length)
    return Encoded(
        ids,
        labels=ids + 1,
        block_ids=ids + 2,
        branch_ids=ids + 3,
        position_ids=np.arange(length),
        image_patches=np.full((patches, 3), first, np.float32) if patches else None,
        image_grids=np.array([[1, patches]]) if patches else None,
        name=name,
    )


def test_layout():
    batch = pack([[sample(10, 3), sample(20, 2)], [sample(30, 4)]])
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21], [30, 31, 32, 33, 0]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    for name, offset in (("labels", 1), ("block_ids", 2), ("branch_ids", 3)):
        column = getattr(batch, name)
        assert torch.equal(
            column[batch.segment_ids >= 0], batch.input_ids[batch.segment_ids >= 0] + offset
        )
    assert batch.tokens == 9
    assert batch.image_patches is None
    assert batch.images == 0


def test_padding_has_segment_minus_one_and_no_target():
    batch = pack([[sample(10, 3)], []], length=5)
    padding = torch.tensor([[0, 0, 0, 1, 1], [1] * 5], dtype=torch.bool)
    assert batch.input_ids.shape == (2, 5)
    assert torch.equal(batch.segment_ids == -1, padding)
    assert torch.equal(batch.labels == IGNORE, padding)


def test_images_run_over_all_rows_in_reading_order():
    rows = [[sample(1, 2, 2, "a"), sample(2, 2, 0, "b")], [sample(3, 2, 1, "c")]]
    batch = pack(rows)
    assert batch.image_patches is not None
    assert batch.image_grids is not None
    assert batch.image_patches[:, 0].tolist() == [1, 1, 3]
    assert batch.image_grids.tolist() == [[1, 2], [1, 1]]
    assert batch.names == ("a", "b", "c")
    assert batch.images == 2


def test_a_row_that_is_too_long_is_refused_with_both_counts():
    rows = [[sample(1, 3)], [sample(1, 3), sample(1, 2)]]
    with pytest.raises(ValueError, match="a row holds 5 tokens, more than the 4 allowed"):
        pack(rows, length=4)
    assert pack(rows, length=5).input_ids.shape == (2, 5)


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_nothing_to_pack_is_refused(rows: list):
    with pytest.raises(ValueError, match="no samples"):
        pack(rows)


def test_to_moves_every_tensor_but_the_shapes_and_keeps_the_names():
    batch = pack([[sample(1, 2, 1, "a")]])
    moved = batch.to("meta")
    assert moved.names == ("a",)
    for column in (
        moved.input_ids,
        moved.labels,
        moved.segment_ids,
        moved.image_patches,
        moved.supervised,
    ):
        assert column is not None
        assert column.device.type == "meta"
    assert moved.image_grids is batch.image_grids
    assert moved.on_host is batch
    assert moved.to("cpu") is batch
    assert (moved.tokens, moved.images) == (batch.tokens, batch.images)
    flat = batch.labels.flatten()[batch.supervised]
    assert flat.tolist() == [t for t in batch.labels.flatten().tolist() if t != IGNORE]
