"""Blocks that are run again in the backward pass: the same numbers from less memory."""

from dataclasses import replace

import pytest
import torch

from chiasm.core.batch import pack
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub import unified
from chiasm.mllm.config import LoRAConfig
from chiasm.train.loop import train
from chiasm.train.optim import set_trained
from chiasm.train.recompute import recomputed
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig


def loss_and_gradients(model, batch):
    """(loss, gradients by name, bytes kept for the backward pass)."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(batch)
    loss.sum.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    weights = {p.data_ptr() for p in model.parameters()}
    return loss.sum.item(), found, sum(size for at, size in kept.items() if at not in weights)


def same(model, batch):
    plain = loss_and_gradients(model, batch)
    with recomputed(model.blocks()):
        again = loss_and_gradients(model, batch)
    assert again[0] == plain[0]
    assert again[1].keys() == plain[1].keys()
    for name in plain[1]:
        assert torch.equal(again[1][name], plain[1][name]), name
    assert again[2] < 0.6 * plain[2]
    assert all("forward" not in vars(block) for block in model.blocks())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("trained", [("vision", "projector", "language_model"), ("projector",)])
def test_packed_losses_and_gradients_are_equal(toy, family, trained):
    model, processor = toy.build(family)
    set_trained(model, Stage("s", 1, lr=dict.fromkeys(trained, 1.0)))
    same(model.train(), pack([[processor.encode(s) for s in toy.samples()]]))


def test_with_adapters_too(toy):
    model, processor = toy.build(lora=LoRAConfig(rank=2, dora=True))
    set_trained(model, Stage("s", 1, lr={"lora": 1.0, "projector": 1.0}))
    same(model.train(), pack([[processor.encode(s) for s in toy.samples()]]))


def test_the_unified_route_with_dropout():
    torch.manual_seed(0)
    config = UnifiedConfig(
        hidden_size=16, layers=3, heads=2, kv_heads=1, intermediate_size=64, dropout=0.2
    )
    bpe = train_bpe(["what colour is it? red circle"] * 3, 290)
    model, processor = unified.build(config, bpe, Autoencoder(AutoencoderConfig()))
    samples = [Sample((user("what is it?"), assistant("red " * n)), str(n)) for n in (3, 9)]
    same(model.train(), pack([[processor.encode(s) for s in samples]]))


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_a_stage_with_it_ends_at_the_same_weights(toy, autocast, tmp_path):
    def run(recompute):
        model, processor = toy.build()
        batch = pack([[processor.encode(s) for s in toy.samples()]])
        stage = Stage("s", 4, lr={"projector": 1e-2, "language_model": 1e-2}, autocast=autocast)
        stage = replace(stage, gradient_checkpointing=recompute)
        folder = tmp_path / str(recompute)

        class Four(list):
            def state_dict(self):
                return {}

        train(model, [stage], lambda _: Four([batch] * 4), folder, show=silent)
        return model.state_dict()

    plain, again = run(False), run(True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_replies_within_a_stage_are_the_same(toy):
    model, processor = toy.build()
    asked = [Sample((user(toy.samples()[0].images[0], "what?"),))]
    respond = Generator(model, processor)

    def said():
        return "".join(piece.text for _, piece in respond(asked, SamplingParams(max_tokens=6)))

    plain = said()
    with recomputed(model.blocks()):
        assert said() == plain
