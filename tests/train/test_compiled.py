"""Compiled blocks compute the same, share their code, and are as they were afterwards."""

import numpy as np
import pytest
import torch
from test_ranks import MADE, log, run

from chiasm.train.compiled import compiled
from chiasm.train.recompute import recomputed

BLOCKS_NAMED = ("mllm", "unified")


def one_step(name, batches):
    """Losses of the batches and the gradients they leave."""
    make, _, _ = MADE[name]
    model = make().eval()  # without dropout
    losses = [model.loss(batch) for batch in batches]
    sum(loss.sum for loss in losses).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return model, [loss.sum.item() for loss in losses], gradients


@pytest.mark.parametrize("again", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("name", BLOCKS_NAMED)
def test_blocks_compute_the_same_and_attention_stays_outside(name, again, monkeypatch):
    make, stream, _ = MADE[name]
    batches = [batch for batch, _ in zip(stream(None), range(4), strict=False)]
    _, losses, gradients = one_step(name, batches)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    torch.compiler.reset()
    model = make().eval()
    with compiled(model.blocks(), backend), recomputed(model.blocks() if again else ()):
        found = [model.loss(batch) for batch in batches]
        sum(loss.sum for loss in found).backward()
    torch.testing.assert_close([loss.sum.item() for loss in found], losses)
    for mine, theirs in zip(
        (p.grad for p in model.parameters() if p.grad is not None), gradients, strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    assert graphs
    assert not any("softmax" in graph for graph in graphs)
    assert any("linear" in graph for graph in graphs)
    assert all("forward" not in block.__dict__ for block in model.blocks())


@pytest.mark.slow
def test_a_run_with_compiled_blocks_is_the_run_without(tmp_path):
    """By the real compiler, backward pass and optimiser included. Not the unified toy: it has
    dropout, which compiled code draws otherwise."""
    run("mllm", tmp_path / "plain")
    run("mllm", tmp_path / "compiled", compile=True)
    pairs = zip(log(tmp_path / "plain"), log(tmp_path / "compiled"), strict=True)
    for plain, fast in pairs:
        np.testing.assert_allclose(fast["loss"], plain["loss"], rtol=1e-5)
        np.testing.assert_allclose(fast["grad_norm"], plain["grad_norm"], rtol=1e-4)
