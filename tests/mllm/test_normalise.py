"""The loss as a mean over tokens or over examples, however these are packed and accumulated."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.batch import IGNORE, pack
from chiasm.core.errors import ConfigError
from chiasm.core.progress import silent
from chiasm.core.sample import Sample, assistant, split_independent, user
from chiasm.data.text import train_bpe
from chiasm.hub import unified
from chiasm.recipes.jobs.job import Context
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig


def by_numpy(model, encoded):
    """The mean nll of every example, each alone in its batch, in fp64."""
    means = []
    for one in encoded:
        batch = pack([[one]])
        with torch.no_grad():
            logits = model.logits(model(batch))[0].double().numpy()
        nll = []
        for row, target in zip(logits, one.labels, strict=True):
            if target != IGNORE:
                nll.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[target])
        means.append(np.mean(nll))
    return means


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(4)), cut=st.integers(1, 4), padding=st.integers(0, 3))
def test_sample_mean_equals_numpy_however_packed(toy, order, cut, padding):
    model, processor = toy.build()
    samples = [toy.samples()[i] for i in order]
    alone = [processor.encode(part) for s in samples for part in split_independent(s)]
    means = by_numpy(model, alone)
    encoded = [processor.encode(s) for s in samples]
    rows = [row for row in (encoded[:cut], encoded[cut:]) if row]
    longest = max(sum(map(len, row)) for row in rows)
    loss = model.loss(pack(rows, longest + padding, per_sample=True))
    assert loss.count == len(means) == 5  # one of the four asks two independent questions
    assert loss.sum.item() == pytest.approx(sum(means), rel=1e-5)
    tokens = model.loss(pack(rows))
    assert tokens.count == sum(int((e.labels != IGNORE).sum()) for e in encoded)
    assert loss.numbers()["text"] == (pytest.approx(tokens.sum.item(), rel=1e-5), tokens.count)
    assert abs(loss.sum.item() / loss.count - tokens.sum.item() / tokens.count) > 1e-3


@pytest.mark.parametrize("per_sample", [False, True])
def test_accumulated_over_uneven_batches_it_is_one_large_batch(toy, per_sample, tmp_path):
    """Through the loop: weights after three steps are the same."""

    class Batches:
        def __init__(self, groups):
            self.groups = groups

        def split(self, data_shard, count):
            self.groups = self.groups[data_shard::count]

        def state_dict(self):
            return {}

        def __iter__(self):
            while True:
                for group in self.groups:
                    yield pack([group], per_sample=per_sample)

    def run(groups, name):
        model, processor = toy.build()
        encoded = [processor.encode(s) for s in toy.samples()]
        stage = Stage(
            "s",
            3,
            lr={"projector": 1e-3, "language_model": 1e-3},
            gradient_accumulation_steps=len(groups),
            autocast="none",
        )
        members = [[encoded[i] for i in group] for group in groups]
        train(model, [stage], lambda _: Batches(members), tmp_path / name, show=silent)
        return model.state_dict()

    one, two = run([[0, 1, 2, 3]], "one"), run([[1], [3, 0, 2]], "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_unified_route_weighs_examples_too():
    torch.manual_seed(0)
    bpe = train_bpe(["a b c d e"] * 3, 290)
    config = UnifiedConfig(
        hidden_size=16,
        layers=1,
        heads=2,
        kv_heads=1,
        intermediate_size=16,
        z_loss=0.0,
        image_weight=1.0,
    )
    model, processor = unified.build(config, bpe, Autoencoder(AutoencoderConfig()))
    samples = [Sample((user("a"), assistant("b " * n)), str(n)) for n in (1, 7, 3)]
    encoded = [processor.encode(s) for s in samples]
    loss = model.loss(pack([encoded], per_sample=True))
    assert loss.count == 3
    assert loss.sum.item() == pytest.approx(sum(by_numpy(model.eval(), encoded)), rel=1e-5)


def test_a_stage_of_images_alone_refuses_to_weigh_replies():
    context = Context(SimpleNamespace(), [], [], None, None, None)
    with pytest.raises(ConfigError, match="stage 's': loss_reduction 'sample' weighs replies"):
        context.images(Stage("s", 1, loss_reduction="sample"), None)
