"""Rows that share what their codes have in common: the sum that is computed is what is saved."""

import PIL.Image
import torch

from chiasm.core.batch import pack
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.hub import unified as hub
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.code_sharing import share_codes
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig

CONFIG = UnifiedConfig(hidden_size=32, layers=1, heads=4, kv_heads=4, intermediate_size=48)


def build(shared):
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(FSQConfig((3, 4)), image_size=16))
    words = train_bpe(["a red circle", "a blue square"], 300)
    model, processor = hub.build(CONFIG, words, autoencoder)
    if shared:
        share_codes(model, autoencoder.quantizer.features())
    return model, processor


def batch_of(processor):
    image = Image(PIL.Image.new("RGB", (16, 16), (200, 30, 60)))
    sample = Sample((user("a red circle"), assistant(image)))
    return pack([[processor.encode(sample)]])


def test_code_rows_are_their_own_part_plus_the_mapped_features():
    plain, _ = build(False)
    shared, _ = build(True)
    table = shared.embed_tokens.parametrizations.weight
    text = plain.vocabulary.text
    torch.testing.assert_close(shared.embed_tokens.weight[:text], plain.embed_tokens.weight[:text])
    extra = shared.embed_tokens.weight[text:] - plain.embed_tokens.weight[text:]
    levels = torch.tensor([[i % 3, i // 3] for i in range(12)])
    a, b = table[0].map[:2], table[0].map[2:]
    expected = [
        sum((0.5 if d > i else -0.5) * a[i] for i in range(2))
        + sum((0.5 if e > i else -0.5) * b[i] for i in range(3))
        for d, e in levels.tolist()
    ]
    torch.testing.assert_close(extra, torch.stack(expected), atol=1e-6, rtol=1e-5)


def test_learning_one_code_moves_its_neighbours_alike():
    model, processor = build(True)
    batch = batch_of(processor)
    model.loss(batch).sum.backward()
    maps = [m.parametrizations.weight[0].map.grad for m in (model.embed_tokens, model.lm_head)]
    assert all(g is not None and g.abs().max() > 0 for g in maps)
    seen = set(
        model.vocabulary.id_to_code(
            batch.input_ids[model.vocabulary.is_code(batch.input_ids)]
        ).tolist()
    )
    unseen = next(code for code in range(model.vocabulary.codes) if code not in seen)
    row = model.vocabulary.text + unseen
    before = model.embed_tokens.weight[row].detach().clone()
    with torch.no_grad():
        shared = model.embed_tokens.parametrizations.weight[0].map
        shared -= shared.grad
    assert not torch.equal(model.embed_tokens.weight[row], before)


def test_saved_as_a_plain_table_that_computes_the_same(tmp_path):
    model, processor = build(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = batch_of(processor)
    expected = model.logits(model(batch))
    hub.save(tmp_path, model, processor)
    loaded, _ = hub.load(tmp_path)
    assert not [name for name, _ in loaded.named_parameters() if "parametrizations" in name]
    torch.testing.assert_close(loaded.logits(loaded(batch)), expected, atol=1e-5, rtol=1e-5)
    assert any("parametrizations" in name for name, _ in model.named_parameters())  # still trains
