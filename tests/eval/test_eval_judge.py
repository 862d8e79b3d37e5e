import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from chiasm.core.batch import IGNORE
from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.protocols import Trainable
from chiasm.core.sample import Image, Sample, user
from chiasm.eval.drawing import score_drawings
from chiasm.eval.judge import Judge, JudgeBatch, judge_accuracy, train_judge

ATTRIBUTES = {"color": ("red", "blue"), "shape": ("square", "bar")}


def draw(color: str, shape: str, x: int) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (16, 16), "white")
    box = (x, 4, x + 6, 10) if shape == "square" else (x, 1, x + 1, 14)
    PIL.ImageDraw.Draw(image).rectangle(box, fill=color)
    return image


def toy(xs=range(2, 8)) -> list[Sample]:
    return [
        Sample(
            (user(Image(draw(color, shape, x)), "?"),),
            f"{color}-{shape}-{x}",
            meta={"color": color, "shape": shape},
        )
        for color in ATTRIBUTES["color"]
        for shape in ATTRIBUTES["shape"]
        for x in xs
    ]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(toy(), ATTRIBUTES, steps=60, size=16, batch=12)


def test_it_learns_a_toy(judge):
    assert judge_accuracy(judge, toy()) == {"joint": 1, "color": 1, "shape": 1, "n": 24}


def test_training_depends_on_the_seed_alone_and_leaves_the_global_one(judge):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (train_judge(toy(), ATTRIBUTES, steps=3, size=16, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_seconds_limit_the_training():
    train_judge(toy(), ATTRIBUTES, steps=10**9, seconds=0.2, size=16)


def test_it_is_trainable_and_ignores_unknown_labels():
    judge = Judge(ATTRIBUTES, 16)
    assert isinstance(judge, Trainable)
    pixels = torch.randn(3, 3, 16, 16)
    labels = {"color": torch.tensor([0, 1, IGNORE]), "shape": torch.tensor([IGNORE, 1, 0])}
    loss = judge.loss(JudgeBatch(pixels, labels))
    assert loss.count == 3
    assert loss.numbers()["color"][1] == 2
    parts = loss.numbers().values()
    assert loss.sum.item() == pytest.approx(sum(value for value, _ in parts), rel=1e-5)
    assert judge.cost(JudgeBatch(pixels, labels)).flops > 1e5


def test_cost_counts_every_multiplication():
    """Against the sizes PyTorch itself runs: 2 operations a multiply-add, three passes."""
    judge, macs = Judge(ATTRIBUTES, 24), 0

    def count(module, _inputs, output):
        nonlocal macs
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        macs += module.weight.numel() * positions

    for module in judge.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    pixels = torch.zeros(2, 3, 24, 24)
    judge(pixels)
    assert judge.cost(JudgeBatch(pixels, {})).flops == 3 * 2 * 2 * macs


def test_samples_without_an_attribute(judge):
    partial = toy()[0].replace(meta={"color": "red", "shape": None})
    accuracy = judge_accuracy(judge, [*toy(), partial])
    assert (accuracy["n"], accuracy["color"]) == (24, 1)
    train_judge([*toy(), partial], ATTRIBUTES, steps=1, size=16)
    with pytest.raises(DataError, match="no image has all of: color, shape"):
        judge_accuracy(judge, [partial])
    with pytest.raises(DataError, match="labelled with color or shape"):
        train_judge([partial.replace(meta={})], ATTRIBUTES)
    with pytest.raises(DataError, match="'pink' is not one of red, blue"):
        train_judge([partial.replace(meta={"color": "pink"})], ATTRIBUTES)


def test_save_and_load(judge, tmp_path):
    judge.save(tmp_path / "deep" / "judge.safetensors")
    again = Judge.load(tmp_path / "deep" / "judge.safetensors")
    images = [draw("red", "bar", 3), draw("blue", "square", 5).resize((40, 40))]
    assert again.attributes == judge.attributes
    assert again.predict(images) == judge.predict(images)
    assert judge.predict(images)[0] == {"color": "red", "shape": "bar"}
    (tmp_path / "bad").write_bytes(b"nonsense")
    for name in ("bad", "absent"):
        with pytest.raises(CheckpointError, match=f"{name}: not a saved judge") as caught:
            Judge.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_drawings_are_scored_against_their_captions(judge):
    drawings = {
        "a red square": [draw("red", "square", 3), draw("red", "bar", 3)],
        "a blue bar": [draw("blue", "bar", 4), draw("blue", "bar", 4)],
    }
    wanted = {
        "a red square": {"color": "red", "shape": "square"},
        "a blue bar": {"color": "blue", "shape": "bar"},
    }
    score = score_drawings(judge, drawings, wanted)
    assert score["per_caption"] == {"a red square": 0.5, "a blue bar": 1.0}
    assert (score["joint"], score["color"], score["shape"]) == (0.75, 1.0, 0.75)
    assert (score["distinct"], score["n"]) == (0.75, 4)
    pair = np.stack([np.asarray(p, float) for p in drawings["a red square"]])
    assert score["distance"] == pytest.approx(np.abs(pair[0] - pair[1]).mean() / 255 / 2)


def test_drawings_that_cannot_be_scored(judge):
    with pytest.raises(DataError, match="no drawings to score"):
        score_drawings(judge, {}, {})
    with pytest.raises(DataError, match="'x' has no drawings"):
        score_drawings(judge, {"x": []}, {"x": {"color": "red"}})
    with pytest.raises(DataError, match="'x': nothing says"):
        score_drawings(judge, {"x": [draw("red", "bar", 2)]}, {})
    with pytest.raises(DataError, match="does not know color 'pink'"):
        score_drawings(judge, {"x": [draw("red", "bar", 2)]}, {"x": {"color": "pink"}})
