"""The plan: models without weights, memory against what autograd really keeps, published runs."""

import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from chiasm.core.errors import ConfigError
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.nn.attention import attention, causal_layout
from chiasm.nn.kernels import planned_kernels
from chiasm.plan.estimate import estimate, fit
from chiasm.plan.hardware import parse
from chiasm.plan.memory import Saved, Sharding, Weights, measure, memory, without_storage
from chiasm.recipes.meta_model import Assumed, forward, outline_of, typical
from chiasm.recipes.planning import chosen_sharding, plan_of
from chiasm.recipes.published import CHAMELEON_34B, RUNS, SMALL, implied_mfu
from chiasm.recipes.recipe import Recipe, batch_unit
from chiasm.train.optim import set_trained
from chiasm.train.parallel import World
from chiasm.train.stage import Ranks, Stage
from chiasm.train.tensor_parallel import split
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig

RATES = {"embedding": 1.0, "transformer": 1.0}
UNIFIED = UnifiedConfig(hidden_size=64, layers=3, heads=4, kv_heads=4, intermediate_size=128)


@pytest.fixture(scope="module")
def implied():
    return {run.name: implied_mfu(run) for run in RUNS}


def test_published_runs_reached_what_runs_reach(implied):
    for run in RUNS:
        if run.remark != SMALL:
            assert 0.15 < implied[run.name][2] < 0.60, (run.name, implied[run.name])


@pytest.mark.parametrize("alike", ["align", "tune", "PaliGemma", "Chameleon"])
def test_comparable_runs_agree_within_a_factor_of_two(implied, alike):
    shares = [mfu for name, (_, _, mfu) in implied.items() if alike in name]
    assert len(shares) >= 2
    assert max(shares) < 2 * min(shares)


def test_their_sizes_are_the_published_ones(implied):
    for name, billions in {
        "LLaVA-1.5 7B, tune": 7.06,
        "LLaVA-1.5 13B, tune": 13.35,
        "PaliGemma 3B, 224": 2.92,
        "nanoVLM 222M": 0.222,
        "Chameleon 34B": 34.3,
    }.items():
        assert implied[name][0] / 1e9 == pytest.approx(billions, rel=0.02), name


def test_34_billion_parameters_are_planned_in_seconds():
    began = time.process_time()
    recipe = Recipe(CHAMELEON_34B, (Stage("s", 10, RATES, batch_tokens=4096),))
    _, (plan,) = plan_of(recipe, Assumed(text_tokens=4000))
    assert time.process_time() - began < 20
    assert plan.weights.trained > 33e9
    assert len(plan.saved.blocks) == 48


@pytest.mark.parametrize("words", [700, 1400])
def test_activations_are_what_autograd_keeps(words):
    """A real forward of the same shapes on the CPU, under the same autocast."""
    stage, assumed = Stage("s", 1, RATES, batch_tokens=words), Assumed(text_tokens=words)
    shapes = without_storage()
    with shapes:
        outlined = outline_of(UNIFIED, assumed)
    set_trained(outlined.model, stage)
    batch = typical(outlined, stage, assumed)
    work = forward(outlined, batch)
    with shapes:
        planned = measure(work, outlined.model, outlined.model.blocks())
    real = outline_of(UNIFIED, assumed)
    set_trained(real.model, stage)
    seen = measure(lambda: _loss(real.model, batch), real.model, real.model.blocks())
    assert planned.activations == pytest.approx(seen.activations, rel=0.1)
    assert planned.copies == pytest.approx(seen.copies, rel=0.01)
    assert planned.recomputed < 0.8 * planned.activations


@pytest.mark.parametrize(
    "options", [{}, {"window": 100}, {"softcap": 3.0}, {"sinks": torch.zeros(4)}], ids=str
)
def test_attention_is_planned_as_a_gpus(options):
    """Queries, keys and values of their own heads, outputs and a number a row of the softmax; no
    matrix of all pairs of tokens, whatever a layer asks for."""
    tokens, size, kept = 700, 64, {}

    def keep(tensor):
        kept[id(tensor.untyped_storage())] = tensor
        return tensor

    with without_storage(), planned_kernels():
        q, k, v = (
            torch.empty(1, heads, tokens, size, dtype=torch.bfloat16, requires_grad=True)
            for heads in (4, 2, 2)
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mixed = attention(q, k, v, causal_layout(tokens, q.device), **options)
    assert mixed.shape == q.shape
    seen = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert seen == pytest.approx(tokens * (2 * size * (4 + 2 + 2 + 4) + 4 * 4), rel=0.01)


@pytest.fixture
def pair():
    """The first of two ranks, the other of which is only made believe: what comes from it is
    anything, but the shapes are right."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield World(0, 2)
    dist.destroy_process_group()


def test_neighbours_hold_what_is_planned_of_them(pair):
    stage, assumed = Stage("s", 1, RATES, batch_tokens=700), Assumed(text_tokens=700)
    _, (plan,) = plan_of(Recipe(UNIFIED, (stage,)), assumed, tensor=2)
    outlined = outline_of(UNIFIED, assumed)
    set_trained(outlined.model, stage)
    batch = typical(outlined, stage, assumed)
    split(outlined.model, pair, Ranks(tensor_parallel=2), torch.device("cpu"))
    held = {_local(p) for p in outlined.model.parameters()}
    assert plan.weights.trained == sum(p.numel() for p in held)
    assert plan.trained == sum(p.numel() for p in outlined.model.parameters())
    kept = {}

    def keep(tensor):
        kept[_local(tensor).untyped_storage().data_ptr()] = _local(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(outlined.model, batch)
    for parameter in held:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    seen = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert plan.saved.activations + plan.saved.copies == pytest.approx(seen, rel=0.1)


def _local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def test_neighbours_are_planned_as_the_engine_takes_them():
    recipe = Recipe(
        UNIFIED,
        (
            Stage(
                "s",
                3,
                RATES,
                "chat+text_to_image",
                batch_tokens=2048,
                gradient_accumulation_steps=8,
            ),
        ),
    )
    _, (whole,) = plan_of(recipe, Assumed())
    _, (plan,) = plan_of(recipe, Assumed(), tensor=2)
    cluster, weights = parse("8xH100"), plan.weights
    chosen = chosen_sharding(Ranks(tensor_parallel=2), weights, cluster, False)
    assert str(chosen) == "tensor over 2, 4 groups"
    apart = estimate(plan.work, weights, plan.saved, cluster, chosen, 0.4)
    alone = estimate(whole.work, whole.weights, whole.saved, cluster, Sharding("DDP", 1, 8), 0.4)
    assert apart.seconds == pytest.approx(alone.seconds)
    for part in ("weights", "gradients", "optimizer", "activations", "copies"):
        assert getattr(apart.memory, part) < getattr(alone.memory, part), part
    assert apart.sent > 4 * 2 * weights.trained
    with pytest.raises(ConfigError, match="divisor"):
        chosen_sharding(Ranks(tensor_parallel=3), weights, cluster, False)
    with pytest.raises(ConfigError, match="kv_heads"):
        plan_of(recipe, Assumed(), tensor=3)
    with pytest.raises(ConfigError, match="only the unified"):
        plan_of(Recipe(MLLMConfig(), (Stage("s", 3, {"projector": 1.0}),)), Assumed(), tensor=2)


def _loss(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return model.loss(batch).sum


def test_memory_counts_by_hand():
    weights = Weights(trained=1000, frozen=500, moments=2.0, averaged=True, largest=100)
    saved = Saved([10.0, 30.0], [2.0, 2.0], 5.0, copies=2000.0, largest_copies=200.0)
    whole = memory(weights, Sharding("DDP", 1, 8), saved)
    assert (whole.weights, whole.copies, whole.gradients) == (4000 + 1000, 2000, 4000)
    assert (whole.optimizer, whole.activations) == (8000 + 4000, 45)
    assert whole.total == whole.step == 1.05 * (5000 + 2000 + 4000 + 12000 + 45) + 1.5e9
    # Between steps: frozen weights in fp32, no activations.
    idle = memory(weights, Sharding("DDP", 1, 8), Saved([10.0], copies=20.0))
    assert idle.total == 1.05 * (6000 + 4000 + 12000) + 1.5e9 > idle.step
    slices = memory(weights, Sharding("tensor", 1, 4, tensor=2), saved)
    assert (slices.weights, slices.restored) == (6000, 0)
    parts = memory(weights, Sharding("FSDP2", 4, 1, True), saved)
    assert (parts.weights, parts.copies, parts.gradients) == (1500 + 800, 200, 1000 + 400)
    assert (parts.optimizer, parts.activations) == (3000, 4 + 30 + 5)


def test_a_larger_cluster_is_faster_and_what_does_not_fit_is_made_to():
    recipe = Recipe(
        CHAMELEON_34B, (Stage("s", 10, RATES, batch_tokens=32768, gradient_accumulation_steps=64),)
    )
    _, (plan,) = plan_of(recipe, Assumed(text_tokens=4000))
    one, many = parse("8xH100"), parse("64xH100")
    given = (plan.work, plan.weights, plan.saved)
    small, large = (estimate(*given, c, Sharding("FSDP2", c.count, 1), 0.4) for c in (one, many))
    assert small.seconds == pytest.approx(8 * large.seconds)
    assert not small.fits
    assert fit(*given, one, 0.4, plan.smallest) is None
    found = fit(*given, many, 0.4, plan.smallest)
    assert found is not None
    assert found.estimate.fits
    assert found.factor * found.micro_batches == pytest.approx(64, rel=0.02)


@pytest.mark.parametrize(
    ("model", "rates", "data"),
    [
        (ContrastiveConfig(), {"vision": 1.0, "text": 1.0}, ""),
        (AutoencoderConfig(), {"encoder": 1.0, "decoder": 1.0}, ""),
        (UNIFIED, RATES, "chat+text_to_image"),
        (MLLMConfig(lora=None), {"vision": 1.0, "projector": 1.0}, "embed_align"),
        (MLLMConfig(projector=MLPConfig(merge=2)), {"projector": 1.0, "lora": 1.0}, ""),
    ],
    ids=["encoder", "tokenizer", "unified", "align", "lora"],
)
def test_every_kind_of_recipe_is_planned(model, rates, data):
    stage = Stage("s", 3, rates, data)
    stage = stage.with_batch_size(batch_unit(model, stage), 2048)
    _, (plan,) = plan_of(Recipe(model, (stage,)), Assumed())
    assert plan.work.flops > 0
    assert plan.saved.activations > 0
    assert plan.weights.trained > 0


@pytest.mark.parametrize("text", ["8xH1000", "0xH100", "H100x8x", ""])
def test_gpus_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--gpus"):
        parse(text)
    assert parse("h100").count == 1


def test_the_command_says_what_fits(capsys):
    from chiasm.cli import main

    main(["plan", "unified_nano", "--gpus", "2xT4", "--fit"])
    said = capsys.readouterr().out
    assert "parameters" in said
    assert "2 x T4" in said
    assert "--stages.0.gradient_accumulation_steps 2" in said
    with pytest.raises(SystemExit):
        main(["plan", "unified_nano", "--gpus", "2xT5"])
