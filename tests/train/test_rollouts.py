"""Learning from rewards: the losses are the papers', rollouts are exact, seeded and resumed, and a
reward that fails costs its reply alone."""

import json
import math
import sys
import time
import types

import numpy as np
import pytest
import torch
from preference_toys import TOYS, image, mllm_toy, unified_toy
from test_ranks import together
from test_resume import KilledError, dying

from chiasm.core.errors import ConfigError
from chiasm.core.progress import silent
from chiasm.core.sample import Sample, assistant, user
from chiasm.data.objectives import chat, text_to_image
from chiasm.data.replies import CHOSEN, EncodedReplies, pack_replies
from chiasm.recipes.rewards import Rewards
from chiasm.recipes.rollouts import Replies, RolloutReplies
from chiasm.train.loop import train
from chiasm.train.policy_loss import PolicyLoss, advantages, k3, token_losses
from chiasm.train.preference_settings import RolloutSettings
from chiasm.train.preferences import target_log_probs
from chiasm.train.rollouts import Reward, Rollout, RolloutStream
from chiasm.train.stage import Stage

FEW = {"replies": 3, "prompts": 2, "max_tokens": 5}


def questions(count=5):
    return [
        Sample((user(image(n), f"what is number {n}?"), assistant("it is red")), f"q{n}",
               meta={"caption": f"noise {n}"})
        for n in range(count)
    ]  # fmt: skip


def vowels(replies):
    """A reward with spread: how often a reply holds certain letters."""
    return [
        Reward(sum(one.text.count(c) for c in "aei") + 0.01 * sum(one.ids)) for _, one in replies
    ]


def rollout_stream(model, processor, settings, score=vowels, objective=chat, data=None):
    replies = Replies(model, processor)

    def log_probs(batch):
        with torch.no_grad():
            return target_log_probs(model.eval(), batch, settings.temperature)

    return RolloutStream(
        data or questions(), [objective], processor, settings, 3,
        RolloutReplies(replies, settings), score, log_probs,
    )  # fmt: skip


@pytest.mark.parametrize("scaled", [True, False])
def test_advantages_are_relative_to_the_group(scaled):
    rewards = np.array([0.0, 1.0, 1.0, 4.0])
    found = advantages(rewards, scaled)
    wanted = rewards - 1.5
    if scaled:
        wanted = wanted / (math.sqrt(((rewards - 1.5) ** 2).sum() / 3) + 1e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert (advantages([2.0, 2.0, 2.0], scaled) == 0).all()


def replies_of(lengths, advantages):
    """A batch of replies of these lengths, of which only sizes and advantages matter."""
    model, processor = unified_toy()
    ids = [(list(range(5, 5 + n)), [True] * n) for n in lengths]
    encoded = processor.continued(Sample((user("what is it?"),), "x"), ids)
    row = EncodedReplies(encoded, (CHOSEN,) * len(lengths), tuple(advantages))
    return model, pack_replies([row], 10_000, keyed=False)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("norm", ["reply", "token", "constant"])
def test_the_policy_loss_is_the_papers(ratio, norm):
    lengths, ahead = (2, 5, 3), (1.0, -0.5, -2.0)
    _, batch = replies_of(lengths, ahead)
    random = np.random.default_rng(0)
    settings = RolloutSettings(
        ratio=ratio, length_norm=norm, clip_low=0.2, clip_high=0.3, kl=0.1, max_tokens=8
    )
    new, old, reference = (-random.gamma(2.0, 0.5, sum(lengths)) for _ in range(3))
    losses, clipped = token_losses(settings, batch, torch.tensor(new), torch.tensor(old))
    divergence = k3(torch.tensor(new), torch.tensor(reference))
    loss = PolicyLoss(settings, None)
    total, count = loss._reduced(batch, losses + settings.kl * divergence)
    wanted, start, many = [], 0, 0
    for length, advantage in zip(lengths, ahead, strict=True):
        own = slice(start, start + length)
        r = new[own] - old[own]
        r = np.exp(np.full(length, r.mean()) if ratio == "sequence" else r)
        bounded = np.clip(r, 0.8, 1.3)
        many += int((bounded * advantage < r * advantage).sum())
        q = np.exp(reference[own] - new[own])
        wanted.append(-np.minimum(r * advantage, bounded * advantage)
                      + 0.1 * (q - np.log(q) - 1))  # fmt: skip
        start += length
    sums = np.array([w.sum() for w in wanted])
    by_norm = {
        "reply": (sums / lengths).sum() / 3,
        "token": sums.sum() / sum(lengths),
        "constant": sums.sum() / 8 / 3,
    }
    assert float(total) / count == pytest.approx(by_norm[norm], rel=1e-6)
    assert int(clipped.sum()) == many
    assert (divergence >= 0).all()


@pytest.mark.parametrize("name", ["mllm", "unified"])
def test_a_batch_of_rollouts_holds_what_was_sampled(name, tmp_path):
    """Every supervised token is one the engine sampled, and the log-probabilities of the packed
    branches are those of each reply alone."""
    model, processor = TOYS[name][0](tmp_path / "language")
    model.eval()
    drawn = name == "unified"
    made = rollout_stream(
        model, processor, RolloutSettings(**FEW), objective=text_to_image if drawn else chat
    )
    kept = []
    generate = made.generate
    made.generate = lambda prompts: kept.append((prompts, generate(prompts))) or kept[-1][1]
    batch = next(iter(made))
    ((prompts, rollouts),) = kept
    flat = [(p, one) for p, own in zip(prompts, rollouts, strict=True) for one in own]
    assert len(batch.kind) == len(flat) == 6
    targets = batch.labels.flatten()[batch.supervised]
    packed = target_log_probs(model, batch)
    for number, (prompt, one) in enumerate(flat):
        chosen = [i for i, free in zip(one.ids, one.chosen, strict=True) if free]
        assert targets[batch.reply == number].tolist() == chosen
        alone = processor.continued(prompt.asked, [(one.ids, one.chosen)])
        own = pack_replies([EncodedReplies(alone, (CHOSEN,), (0.0,))], 10_000, keyed=False)
        torch.testing.assert_close(
            packed[batch.reply == number], target_log_probs(model, own), atol=1e-5, rtol=1e-5
        )
        if drawn:
            assert len(one.images) == 1
            assert len(chosen) == processor.codec.codes_per_image < len(one.ids)
    # The image is in the batch once, whatever the number of replies.
    assert batch.images == (0 if drawn else 2)
    assert torch.is_grad_enabled()
    loss = PolicyLoss(RolloutSettings(**FEW), None)(model.train(), batch)
    loss.sum.backward()  # on the policy that sampled: the loss is minus the mean advantage
    per_group = [-batch.advantages[batch.group == g].sum().item() for g in (0, 1)]
    assert loss.sum.item() == pytest.approx(sum(per_group), abs=1e-5)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_seeds_are_of_place_and_number_alone(tmp_path):
    model, processor = mllm_toy(tmp_path / "language")
    settings = RolloutSettings(**FEW)
    one, two = (rollout_stream(model, processor, settings) for _ in range(2))
    first = [next(iter(one)) for _ in range(3)]
    next(iter(two))
    two.load_state_dict(json.loads(json.dumps(two.state_dict())))
    again = [next(iter(two)) for _ in range(2)]
    for a, b in zip(first[1:], again, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.advantages, b.advantages)
    assert not torch.equal(first[0].input_ids, first[1].input_ids)


def run(name, folder, language, after=None, resume=True, **settings):
    make, rates, _ = TOYS[name]
    model, processor = make(language)
    settings = RolloutSettings(**FEW | settings)
    stage = Stage(
        "reward", 4, rates, rollouts=settings, log_every=1, autocast="none", save_every=1,
        feature_cache=0.0, gradient_accumulation_steps=2,
    )  # fmt: skip
    source = lambda _: rollout_stream(model, processor, settings)  # noqa: E731
    train(
        model, [stage], source if after is None else dying(source, after), folder,
        show=silent, resume=resume, keep=9,
    )  # fmt: skip
    return model


def log(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mllm", {}),
        ("unified", {"updates": 2, "kl": 0.1}),
        ("lora", {"kl": 0.1, "ratio": "sequence"}),
    ],
)
def test_killed_again_and_again_it_equals_one_go(name, settings, tmp_path):
    """Also between two updates of the same rollouts, which later weights could not sample again."""
    whole = run(name, tmp_path / "whole", tmp_path / "language", **settings).state_dict()
    for after in (3, 2):
        with pytest.raises(KilledError):
            run(name, tmp_path / "cut", tmp_path / "language", after, **settings)
    again = run(name, tmp_path / "cut", tmp_path / "language", **settings).state_dict()
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key
    lines = log(tmp_path / "whole")
    assert lines[0]["reward_std"] > 0
    assert 1 <= lines[0]["reply_tokens"] <= 5
    if "kl" in settings:
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert lines[-1]["kl"] > 0


def test_two_ranks_equal_one(tmp_path):
    run("mllm", tmp_path / "one", tmp_path / "language")
    together(lambda _: run("mllm", tmp_path / "two", tmp_path / "language"), tmp_path)
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        for key in ("loss", "grad_norm", "reward", "reply_tokens", "tokens"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key


def test_groups_without_spread_are_left_out_and_drawn_again(tmp_path):
    model, processor = mllm_toy(tmp_path / "language")
    seen = []

    def flat(replies):
        """Only the replies to every third prompt differ in reward."""
        names = [sample.id for sample, _ in replies]
        seen.extend(dict.fromkeys(names))
        return [Reward(float(n) if name in ("q1", "q4") else 1.0) for n, name in enumerate(names)]

    made = rollout_stream(model, processor, RolloutSettings(**FEW, resample=3), flat)
    batch = next(iter(made))
    used, tried = batch.stats["groups_used"]
    assert used == batch.group.max() + 1 == 2
    assert tried == len(seen) > 2
    assert (batch.advantages != 0).any()
    made = rollout_stream(
        model, processor, RolloutSettings(**FEW), lambda r: [Reward(1.0)] * len(r)
    )
    batch = next(iter(made))
    assert batch.stats["groups_used"][0] == 0
    assert (batch.advantages == 0).all()


@pytest.mark.parametrize("how", ["keep", "mask", "penalise"])
def test_replies_that_were_cut_off(how, tmp_path):
    model, processor = mllm_toy(tmp_path / "language")
    overlong = {"overlong": 2} if how == "penalise" else {}
    made = rollout_stream(model, processor, RolloutSettings(**FEW, truncated=how, **overlong))
    made.score = lambda replies: [Reward(float(n % 3)) for n in range(len(replies))]
    lengths = iter([5, 5, 2, 5, 4, 3])

    def generate(prompts):
        return [
            [
                Rollout("x", tuple(range(9, 9 + n)), (True,) * n, "length" if n == 5 else "stop")
                for n in (next(lengths) for _ in prompt.seeds)
            ]
            for prompt in prompts
        ]

    made.generate = generate
    batch = next(iter(made))
    assert batch.stats["truncated"] == (3, 6)
    if how == "mask":
        assert batch.length.tolist() == [2, 4, 3]
    else:
        assert batch.length.tolist() == [5, 5, 2, 5, 4, 3]
    if how == "penalise":
        rewards = [0 - 1, 1 - 1, 2 - 0, 0 - 1, 1 - 0.5, 2 - 0]
        wanted = [*advantages(rewards[:3]), *advantages(rewards[3:])]
        np.testing.assert_allclose(batch.advantages.numpy(), wanted, rtol=1e-5)


def strange(sample, reply):
    """A reward function that fails in every way."""
    if "raise" in reply.text:
        raise ValueError("no")
    if "nan" in reply.text:
        return float("nan")
    if "hang" in reply.text:
        time.sleep(5)
    return {"length": float(len(reply.text)), "known": float("red" in reply.text)}


def test_a_reward_that_fails_costs_its_reply_alone(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.strange = strange
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    with pytest.raises(ConfigError, match="not allowed"):
        Rewards({"my_rewards:strange": 1.0}, None)
    monkeypatch.setenv("CHIASM_ALLOW_CUSTOM", "my_rewards")
    rewards = Rewards({"my_rewards:strange": 2.0, "exact": 1.0}, None, time_limit=0.3)
    sample = questions(1)[0]
    texts = ["it is red", "raise", "nan", "hang", "blue"]
    began = time.monotonic()
    found = rewards([(sample, Rollout(text, (1,), (True,))) for text in texts])
    assert time.monotonic() - began < 3
    assert [one.total for one in found] == [2.0 * (9 + 1) + 1.0, None, None, None, 8.0]
    assert found[0].parts == {
        "my_rewards:strange/length": 9.0, "my_rewards:strange/known": 1.0, "exact": 1.0
    }  # fmt: skip


def test_unknown_rewards_and_settings_without_sense_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        Rewards({"exakt": 1.0}, None)
    for settings, message in (
        ({"replies": 1}, "2 or more"),
        ({"rewards": {}}, "is empty"),
        ({"temperature": 0.0}, "above 0"),
        ({"truncated": "penalise"}, "together"),
        ({"prompts": 0}, "1 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            RolloutSettings(**settings)
    with pytest.raises(ConfigError, match=r"rollouts\.prompts"):
        Stage("x", 1, {}, rollouts=RolloutSettings(), batch_tokens=64)


def test_images_are_read_by_the_model_that_drew_them(tmp_path):
    model, processor = unified_toy()
    model.eval()
    replies = Replies(model, processor)
    rewards = Rewards({"reads": 1.0, "shapes": 0.5}, replies.generator)
    made = rollout_stream(model, processor, RolloutSettings(**FEW), objective=text_to_image)
    made.score = lambda pairs: rewards(pairs)
    batch = next(iter(made))
    value, count = batch.stats["reward/reads"]
    assert count == 6
    assert 0 < value / count < 1
