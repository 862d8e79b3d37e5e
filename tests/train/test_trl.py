"""Our losses are those of trl's trainers, on the same log-probabilities.

trl needs versions of its own of what it builds on: CHIASM_TRL_PYTHON names a Python that has it
(trl 1.16), and without it this is skipped."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_toys import unified_toy

from chiasm.core.sample import Sample, user
from chiasm.data.replies import CHOSEN, REJECTED, EncodedReplies, pack_replies
from chiasm.train.policy_loss import PolicyLoss, k3, token_losses
from chiasm.train.preference_settings import PreferenceSettings, RolloutSettings
from chiasm.train.preferences import label_loss, pair_loss

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("CHIASM_TRL_PYTHON", "")
LENGTHS = (4, 2, 7, 3, 5, 1)
WIDTH = max(LENGTHS)


def case(seed=0):
    random = np.random.default_rng(seed)
    mask = np.arange(WIDTH) < np.array(LENGTHS)[:, None]
    return random, mask.astype(int), -random.gamma(1.0, 1.0, (3, len(LENGTHS), WIDTH))


@pytest.fixture(scope="module")
def theirs():
    if not PYTHON:
        pytest.skip("CHIASM_TRL_PYTHON names no Python with trl")
    asked = [one for _, one in cases()]
    script = Path(__file__).with_name("trl_losses.py")
    found = subprocess.run(
        [PYTHON, "-W", "ignore", str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    line = next(x for x in found.stdout.splitlines() if x.startswith("LOSSES "))
    return dict(zip((name for name, _ in cases()), json.loads(line[7:]), strict=True))


def cases():
    random, mask, (new, old, reference) = case()
    sums = (reference * mask).sum(1)
    common = {"mask": mask.tolist(), "log_probs": new.tolist()}
    for loss in ("sigmoid", "ipo", "hinge"):
        yield loss, {"kind": "dpo", "loss": loss, "beta": 0.3, "smoothing": 0.0,
                     "reference": sums.tolist(), **common}  # fmt: skip
    label = [True, False, True, True, False, False]
    unrelated = -random.gamma(2.0, 2.0, (2, len(LENGTHS)))
    yield "kto", {"kind": "kto", "beta": 0.3, "weights": [1.5, 0.5], "label": label,
                  "reference": sums.tolist(), "unrelated": unrelated[0].tolist(),
                  "unrelated_reference": unrelated[1].tolist(), **common}  # fmt: skip
    for loss, ratio in (("grpo", "token"), ("grpo", "sequence"), ("dapo", "token"),
                        ("dr_grpo", "token")):  # fmt: skip
        yield f"{loss}-{ratio}", {
            "kind": "grpo", "loss": loss, "ratio": ratio, "kl": 0.1, "clip": [0.2, 0.3],
            "old": old.tolist(), "reference": reference.tolist(), "longest": 9,
            "advantages": [1.0, -1.0, 0.5, -0.5, 2.0, -2.0], **common,
        }  # fmt: skip


def float32(x):
    return torch.tensor(x, dtype=torch.float32)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_pairs(theirs, loss):
    _, mask, (new, _, reference) = case()
    ratio = float32((new * mask).sum(1) - (reference * mask).sum(1))
    settings = PreferenceSettings(loss, beta=0.3)
    if settings.averages:
        ratio = ratio / float32(LENGTHS)
    ours = pair_loss(settings, *ratio.chunk(2)).mean()
    assert float(ours) == pytest.approx(theirs[loss], abs=1e-5)


def test_labels(theirs):
    given = dict(cases())["kto"]
    _, mask, (new, _, reference) = case()
    ratio = float32((new * mask).sum(1) - (reference * mask).sum(1))
    unrelated = float32(given["unrelated"]) - float32(given["unrelated_reference"])
    settings = PreferenceSettings("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    ours, _ = label_loss(settings, ratio, torch.tensor(given["label"]), unrelated)
    assert float(ours.mean()) == pytest.approx(theirs["kto"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("grpo-token", "reply"),
        ("grpo-sequence", "reply"),
        ("dapo-token", "token"),
        ("dr_grpo-token", "constant"),
    ],
)
def test_rollouts(theirs, name, norm):
    given = dict(cases())[name]
    _, mask, (new, old, reference) = case()
    _, processor = unified_toy()
    ids = [(list(range(5, 5 + n)), [True] * n) for n in LENGTHS]
    encoded = processor.continued(Sample((user("what is it?"),), "x"), ids)
    row = EncodedReplies(encoded, (CHOSEN,) * len(LENGTHS), tuple(given["advantages"]))
    batch = pack_replies([row], 10_000, keyed=False)
    settings = RolloutSettings(
        ratio=given["ratio"], length_norm=norm, clip_high=0.3, kl=0.1, max_tokens=9
    )
    flat = [float32(x[mask.astype(bool)]) for x in (new, old, reference)]
    losses, _ = token_losses(settings, batch, flat[0], flat[1])
    total, count = PolicyLoss(settings, None)._reduced(
        batch, losses + settings.kl * k3(flat[0], flat[2])
    )
    assert float(total) / count == pytest.approx(theirs[name], abs=1e-5)
    assert REJECTED not in batch.kind
