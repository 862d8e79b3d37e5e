"""Reading words from codes, against a loop."""

import dataclasses

import pytest
import torch

from chiasm.core.batch import ImageBatch
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.caption_reader import CaptionReader
from chiasm.unified.config import AutoencoderConfig, FSQConfig

TEXTS = torch.tensor([[3, 5, 0], [4, 4, 2]])
LENGTHS = torch.tensor([2, 3])
MATCH = torch.tensor([[True, False], [False, True], [False, False]])


def test_loss_is_the_mean_surprise_of_the_distinct_words():
    torch.manual_seed(0)
    reader, values = CaptionReader(3, 8, hidden=6), torch.randn(3, 3, 4, 5)
    found = reader.loss(values, TEXTS, LENGTHS, MATCH)
    for image, words in enumerate(([3, 5], [4, 2], [])):
        chance = reader(values[image : image + 1]).log_softmax(1)[0]
        expected = -sum(float(chance[w]) for w in words) / max(1, len(words))
        assert float(found[image]) == pytest.approx(expected, abs=1e-5)


def test_where_a_code_stands_does_not_matter():
    torch.manual_seed(0)
    reader, values = CaptionReader(3, 8), torch.randn(1, 3, 4, 5)
    shuffled = values.flatten(2)[..., torch.randperm(20)].view_as(values)
    torch.testing.assert_close(reader(values), reader(shuffled))


def test_the_tokenizer_learns_from_captions_only_where_there_are_any():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        FSQConfig((4, 4)),
        16,
        multipliers=(1, 1, 1),
        decoder_channels=64,
        decoder_blocks=1,
        caption_vocab=8,
    )
    model = Autoencoder(dataclasses.replace(config, caption_loss_weight=0.5))
    patches, grids = torch.rand(3 * 16, 48) * 2 - 1, torch.tensor([[4, 4]] * 3)
    captioned = model.loss(ImageBatch(patches, grids, TEXTS, LENGTHS, MATCH))
    bare = model.loss(ImageBatch(patches, grids))
    gained = float(captioned.sum - bare.sum)
    assert gained == pytest.approx(0.5 * captioned.numbers()["caption"][0], rel=1e-4)
    assert bare.numbers()["caption"][0] == 0
    captioned.sum.backward()
    assert all(p.grad is not None for p in model.reader.parameters())
    assert Autoencoder(dataclasses.replace(config, caption_loss_weight=0.0)).reader is None
