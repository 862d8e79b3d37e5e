"""Two processes over gloo equal one, for both routes, held whole or in parts."""

import json
import math
import multiprocessing
import shutil
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
from train_toys import ToyStream, toy

from chiasm.core.batch import Encoded, pack
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.progress import silent
from chiasm.core.vocab import Vocabulary
from chiasm.mllm.config import MLPConfig
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.train.checkpoint import newest, read_json, read_tensors
from chiasm.train.evaluation import EvalResult
from chiasm.train.fsdp import shard
from chiasm.train.loop import train
from chiasm.train.micro_batches import micro_batch_count
from chiasm.train.parallel import World, current
from chiasm.train.stage import GroupSettings, Ranks, Stage
from chiasm.train.tensor_parallel import split
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

IMAGE = 3
VOCABULARY = Vocabulary(text=20, codes=12, pad=0, begin=1, end=2, begin_image=3, end_image=4)
WHOLE, PARTS, SPLIT = Ranks(), Ranks(fsdp_min_params=0), Ranks(tensor_parallel=2)


def mllm():
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import AttentionInterface

    from chiasm.mllm.language import attention_forward

    AttentionInterface.register("chiasm", attention_forward)
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=24,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            attn_implementation="chiasm",
        )
    )
    vision = ViT(ViTConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2))
    return MLLM(vision, build_projector(MLPConfig(merge=1), 16, 16, 1.0), language, IMAGE)


def unified():
    torch.manual_seed(0)
    config = UnifiedConfig(
        hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=24, dropout=0.1
    )
    return Unified(config, VOCABULARY)


class Mixed(ToyStream):
    """Packs of samples with no, one or several images of uneven grids: most data shards of a step
    differ in how many, and about one in three has none."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def __iter__(self):
        while True:
            place = self.cursor * self.data_shard[1] + self.data_shard[0]
            random = np.random.default_rng((place, 7))
            self.cursor += 1
            counts = random.integers(0, 3, 2) * (random.random() > 0.3)
            yield pack([[self.sample(random, int(n)) for n in counts]])

    def sample(self, random, count):
        grids = random.integers(1, 4, (count if self.images else 0, 2))
        slots = int(grids.prod(1).sum())
        words = random.integers(5, 20, int(random.integers(4, 12)))
        ids = np.concatenate([np.full(slots, IMAGE), words])
        targets = np.concatenate([np.full(slots, -100), random.integers(5, 20, len(words))])
        position = np.arange(len(ids))
        patches = random.random((slots, 48), np.float32) if slots else None
        order = position.copy()
        return Encoded(
            ids, targets, order, np.zeros_like(ids), position, patches, grids if slots else None
        )


MADE = {
    "mllm": (mllm, lambda _: Mixed(True), ("vision", "projector", "language_model")),
    "unified": (unified, lambda _: Mixed(False), ("embedding", "transformer")),
    "toy": (toy, lambda _: ToyStream(), ("body", "head")),
}


def stages(groups, steps=3, **settings):
    """The first stage trains the last group only: frozen parts, then everything."""
    common = {
        "gradient_accumulation_steps": 2,
        "log_every": 1,
        "autocast": "none",
        "save_every": 2,
        **settings,
    }
    rates = dict.fromkeys(groups, 1e-3)
    return [
        Stage("first", steps, lr={groups[-1]: 1e-3}, feature_cache=0, **common),
        Stage("second", steps, lr=rates, feature_cache=0, **common),
    ]


def run(name, folder, ranks=WHOLE, resume=False, device=None, **settings):
    make, stream, groups = MADE[name]
    model = make()
    train(
        model,
        stages(groups, **settings),
        stream,
        folder,
        show=silent,
        resume=resume,
        ranks=ranks,
        keep=9,
        device=device,
    )
    return model


def together(work, folder, size=2):
    """Run work(rank) in processes of one gloo world, forked: imports are paid for once."""
    context = multiprocessing.get_context("fork")
    errors = context.Queue()

    def one(rank):
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
            )
            work(rank)
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            errors.put(f"rank {rank}:\n{traceback.format_exc()}")
            raise

    processes = [context.Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    hung = [p for p in processes if p.is_alive()]
    for process in hung:
        process.kill()
    said = [] if errors.empty() else [errors.get()]
    assert not said, said[0]
    assert not hung, "a rank waits for ever"
    assert all(p.exitcode == 0 for p in processes)


def log(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def assert_same_training(one, two, tolerance=1e-6):
    """Losses and gradient norms of every step, and the final weights."""
    pairs = list(zip(log(one), log(two), strict=True))
    assert len(pairs) >= 6
    for a, b in pairs:
        for name in ("loss", "grad_norm", "tokens", "images", "flops"):
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), (name, a, b)
    first, second = (
        read_tensors(newest(folder / "checkpoints") / "model.safetensors") for folder in (one, two)
    )
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["mllm", "unified"])
def test_two_ranks_equal_one_whole_and_in_parts(name, tmp_path):
    run(name, tmp_path / "one")

    def work(_rank):
        whole = run(name, tmp_path / "whole")
        parts = run(name, tmp_path / "parts", PARTS)
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            assert type(b.data) is torch.Tensor  # plain again, to be saved
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)

    together(work, tmp_path)
    assert_same_training(tmp_path / "one", tmp_path / "whole")
    assert_same_training(tmp_path / "one", tmp_path / "parts")


class Spoken(Mixed):
    """Texts and codes to learn, unevenly many of each in every micro-batch."""

    def __init__(self):
        super().__init__(False)

    def sample(self, random, count):
        n = int(random.integers(5, 30))
        ids = random.integers(5, VOCABULARY.size, n)
        targets = random.integers(5, 20 + 12 * (random.random() > 0.4), n)
        targets[random.random(n) < 0.3] = -100
        position = np.arange(n)
        return Encoded(ids, targets, position.copy(), np.zeros_like(ids), position)


@torch.no_grad()
def by_hand(model, batches):
    """What the log of one step over these micro-batches has to say, by NumPy in float64."""
    sums = {"text": [], "image": [], "log_z_squared": []}
    for batch in batches:
        logits = model.logits(model(batch)).numpy()
        for b, t in np.argwhere(batch.labels.numpy() != -100):
            target, row = int(batch.labels[b, t]), logits[b, t]
            log_z = row.max() + np.log(np.exp(row - row.max()).sum())
            sums["image" if target >= VOCABULARY.text else "text"].append(log_z - row[target])
            sums["log_z_squared"].append(log_z**2)
    config, count = model.config, len(sums["log_z_squared"])
    total = sum(sums["text"]) + config.image_weight * sum(sums["image"])
    total += config.z_loss * sum(sums["log_z_squared"])
    return {"loss": total / count} | {name: np.mean(values) for name, values in sums.items()}


def test_each_modality_is_accounted_for_as_by_hand_under_accumulation_and_ranks(tmp_path):
    def made():
        torch.manual_seed(0)
        config = UnifiedConfig(
            hidden_size=16,
            layers=2,
            heads=2,
            kv_heads=2,
            intermediate_size=24,
            z_loss=0.01,
            image_weight=0.25,
        )
        return Unified(config, VOCABULARY)

    def one_step(folder):
        stage = Stage(
            "s",
            1,
            lr={"transformer": 1e-3},
            gradient_accumulation_steps=4,
            log_every=1,
            autocast="none",
        )
        train(made(), [stage], lambda _: Spoken(), folder, show=silent)

    batches = []
    for data_shard in range(4):
        stream = Spoken()
        stream.split(data_shard, 4)
        batches.append(next(iter(stream)))
    expected = by_hand(made().double(), batches)
    one_step(tmp_path / "one")
    together(lambda _rank: one_step(tmp_path / "two"), tmp_path)
    for folder in ("one", "two"):
        (line,) = log(tmp_path / folder)
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=1e-6), (folder, name)


def cut(folder, source, step):
    """A copy of a run as a kill after this step's checkpoint would leave it."""
    shutil.copytree(source, folder)
    for place in (folder / "checkpoints").iterdir():
        if int(place.name[5:]) > step:
            shutil.rmtree(place)


def test_a_sharded_checkpoint_of_two_resumes_on_one_and_back(tmp_path):
    """With Muon, which needs whole matrices, with averages, in the middle of the second stage."""
    settings = {
        "optimizer": "muon",
        "ema": 0.9,
        "steps": 4,
        "groups": {"transformer": GroupSettings(weight_decay=0.1)},
    }
    settings = {k: v for k, v in settings.items() if k != "groups"}

    def first(_rank):
        run("unified", tmp_path / "two", PARTS, **settings)

    (tmp_path / "a").mkdir()
    together(first, tmp_path / "a")
    run("unified", tmp_path / "one", **settings)
    cut(tmp_path / "two-one", tmp_path / "two", 6)
    run("unified", tmp_path / "two-one", resume=True, **settings)
    for kind in (WHOLE, PARTS):
        cut(tmp_path / f"one-two-{kind.fsdp_min_params}", tmp_path / "one", 6)

    def second(_rank):
        for kind in (WHOLE, PARTS):
            run(
                "unified",
                tmp_path / f"one-two-{kind.fsdp_min_params}",
                kind,
                resume=True,
                **settings,
            )

    (tmp_path / "b").mkdir()
    together(second, tmp_path / "b")
    for other in ("two", "two-one", "one-two-0", f"one-two-{WHOLE.fsdp_min_params}"):
        assert_same_training(tmp_path / "one", tmp_path / other)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [WHOLE, PARTS], ids=["whole", "parts"])
@pytest.mark.parametrize("name", ["mllm", "unified"])
def test_a_thousand_uneven_steps_without_a_hang(name, ranks, tmp_path):
    together(lambda _: run(name, tmp_path / "run", ranks, steps=500, save_every=0), tmp_path)
    lines = log(tmp_path / "run")
    assert len(lines) == 1000
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_hybrid_sharding_equals_one(tmp_path):
    run("unified", tmp_path / "one", gradient_accumulation_steps=4, save_every=3)

    def work(_rank):
        run(
            "unified",
            tmp_path / "four",
            Ranks(0, hsdp_replicas=2),
            gradient_accumulation_steps=4,
            save_every=3,
        )

    together(work, tmp_path, size=4)
    assert_same_training(tmp_path / "one", tmp_path / "four")


def test_a_nan_on_one_rank_is_refused_by_all_and_a_signal_to_one_ends_all(tmp_path):
    import os
    import signal

    from chiasm.core.errors import InterruptedRunError

    def work(rank):
        class Poisoned(ToyStream):
            def __iter__(self):
                for number, (x, y) in enumerate(super().__iter__()):
                    if rank == 1 and number == 3:
                        x[0, 0] = math.nan
                    if rank == 1 and number == 6:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield x, y

        model = toy()
        stage = Stage(
            "s", 50, lr={"head": 1e-2, "body": 1e-2}, gradient_accumulation_steps=2, log_every=1
        )
        with pytest.raises(InterruptedRunError):
            train(model, [stage], lambda _: Poisoned(), tmp_path / "run", show=silent)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        sums = current().gather([p.sum().item() for p in model.parameters()])
        assert sums[0] == sums[1]

    together(work, tmp_path)
    state = read_json(newest(tmp_path / "run/checkpoints") / "state.json")
    assert state["step"] == 6
    assert state["ledger"]["stages"][0]["skipped_steps"] == 1


def test_data_shards_share_a_step_evenly_or_say_on_how_many_ranks():
    assert micro_batch_count(1, 1, World()) == 1
    assert micro_batch_count(3, 2, World(0, 2)) == 4
    assert micro_batch_count(4, 1, World(0, 2)) == 4
    with pytest.raises(CheckpointError, match="on 1, 2, 4 ranks"):
        micro_batch_count(4, 4, World(0, 3))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_split_every_block_equal_one(size, tmp_path):
    """Two hold slices of one model; of four, two such pairs share the data out."""
    run("unified", tmp_path / "one", gradient_accumulation_steps=2)

    def work(_rank):
        model = run("unified", tmp_path / "split", SPLIT, gradient_accumulation_steps=2)
        assert all(type(p.data) is torch.Tensor for p in model.parameters())
        batch = next(iter(Mixed(False)))
        sums = current().gather(model.loss(batch).sum.item())  # whole again, and alike
        assert len(set(sums)) == 1

    together(work, tmp_path, size)
    assert_same_training(tmp_path / "one", tmp_path / "split")


def test_a_split_checkpoint_resumes_on_one_and_back(tmp_path):
    """With Muon, averages and an evaluation between, in the middle of the second stage."""
    settings = {"optimizer": "muon", "ema": 0.9, "steps": 4}

    def on_two(folder, resume=False):
        make, stream, groups = MADE["unified"]
        model, batch = make(), next(iter(Mixed(False)))
        train(
            model,
            stages(groups, evaluate_every=2, **settings),
            stream,
            folder,
            show=silent,
            resume=resume,
            ranks=SPLIT,
            keep=9,
            evaluate=lambda _: EvalResult.of({"loss": model.loss(batch).sum.item()}),
        )

    (tmp_path / "a").mkdir()
    together(lambda _: on_two(tmp_path / "two"), tmp_path / "a")
    run("unified", tmp_path / "one", **settings)
    cut(tmp_path / "two-one", tmp_path / "two", 6)
    run("unified", tmp_path / "two-one", resume=True, **settings)
    cut(tmp_path / "one-two", tmp_path / "one", 6)
    (tmp_path / "b").mkdir()
    together(lambda _: on_two(tmp_path / "one-two", True), tmp_path / "b")
    for other in ("two", "two-one", "one-two"):
        assert_same_training(tmp_path / "one", tmp_path / other)


def test_what_cannot_be_split_is_refused(tmp_path):
    def work(_rank):
        for name, ranks, words in (
            ("mllm", SPLIT, "only the unified model's blocks"),
            ("unified", Ranks(tensor_parallel=3), "choose a divisor"),
        ):
            with pytest.raises(ConfigError, match=words):
                run(name, tmp_path / "run", ranks)

    together(work, tmp_path)


def test_rates_that_hang_on_parameters_stay_with_those_held_in_parts(tmp_path):
    def widths(model):
        return {name: getattr(p, "widening", None) for name, p in model.named_parameters()}

    def made():
        return Unified(
            UnifiedConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, mup_base_width=8),
            VOCABULARY,
        )

    def work(_rank):
        before = widths(made())
        assert 2.0 in before.values()
        model = made()
        shard(model, current(), PARTS, torch.device("cpu"))
        assert widths(model) == before
        model = made()
        split(model, current(), SPLIT, torch.device("cpu"))
        assert widths(model) == before

    together(work, tmp_path)


def test_replicas_that_do_not_divide_the_ranks_are_refused(tmp_path):
    def work(_rank):
        with pytest.raises(ConfigError, match="choose a divisor"):
            run("toy", tmp_path / "run", Ranks(0, hsdp_replicas=3))

    together(work, tmp_path)
