"""What train and eval say about images: sizes that lose text, and a model that does not look."""

import json
import re
from dataclasses import replace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from chiasm import cli
from chiasm.core.progress import silent
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.resolution import resolution
from chiasm.mllm.config import AnyResConfig, CropConfig, NativeConfig, PadConfig, ResizeConfig
from chiasm.mllm.images import build_mode
from chiasm.recipes.run import run
from chiasm.vision.config import ViTConfig
from route_toys import make_parts, mllm_recipe, samples, unified_recipe


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


def page(size: tuple[int, int]) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(image)
    for y in range(10, size[1] - 20, 18):
        draw.text((10, y), "total 12.50 paid in cash, change 7.50, thank you", fill="black")
    return image


@pytest.mark.parametrize("make", [mllm_recipe, unified_recipe])
def test_a_model_that_cannot_have_learnt_to_look_is_told_at_the_end(parts, make, tmp_path, capfd):
    recipe = make(parts, steps=1)
    run(recipe, tmp_path / "run", show=silent)
    error = " ".join(capfd.readouterr().err.split())
    record = json.loads((tmp_path / "run" / "image_use.json").read_text())
    assert record["n"] == 12
    assert record["verdict"] != "used"
    assert f"{record['accuracy']:.1%} with its own image" in error
    assert "16 training samples: too few" in error
    assert "steps: train longer" in error


def test_nothing_is_checked_where_it_is_not_wanted(parts, tmp_path, capfd):
    run(mllm_recipe(parts, steps=1), tmp_path / "run", show=silent, check=False)
    assert not (tmp_path / "run" / "image_use.json").exists()
    assert "image" not in capfd.readouterr().err


def test_a_check_that_fails_costs_no_run(parts, tmp_path, capfd, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("chiasm.recipes.run.check_image_use", fail)
    run(mllm_recipe(parts, steps=1), tmp_path / "run", show=silent)
    assert (tmp_path / "run" / "model.json").exists()
    assert "could not be checked: no memory" in " ".join(capfd.readouterr().err.split())


def test_text_that_is_lost_is_told_before_training(parts, tmp_path, capfd):
    from chiasm.data.formats.messages import write_messages

    rows = [
        Sample((user(Image(page((400, 300 + n))), "total?"), assistant("12.50")), f"p{n}")
        for n in range(4)
    ]
    write_messages(rows, tmp_path / "data" / "train.jsonl")
    write_messages(rows, tmp_path / "data" / "test.jsonl")
    recipe = replace(mllm_recipe(parts, steps=1), data=str(tmp_path / "data"))
    run(recipe, tmp_path / "run", show=silent)
    error = " ".join(capfd.readouterr().err.split())
    before = error[: error.index("with its own image")]
    assert re.search(r"images of 400 x 30\d pixels are seen at 32 x 32: lines of text", before)
    assert "--model.encoder" in before


def test_eval_says_whether_the_image_is_used(parts, tmp_path, capfd):
    run(mllm_recipe(parts, steps=1), tmp_path / "run", show=silent, check=False)
    arguments = ["eval", str(tmp_path / "run"), "--task", str(parts / "data")]
    cli.main(arguments)
    output = " ".join(capfd.readouterr().out.split())
    kept = tmp_path / "run" / "predictions-data-image-check.jsonl"
    own = tmp_path / "run" / "predictions-data.jsonl"
    rows, others = ([json.loads(x) for x in f.read_text().splitlines()] for f in (own, kept))
    assert len(rows) == len(others) == 12
    right = [sum(row["correct"] for row in some) / 12 for some in (rows, others)]
    assert f"{right[0]:.1%} with its own image, {right[1]:.1%} with another" in output
    assert "by the question alone" in output
    cli.main([*arguments, "--no-check", "--out", str(tmp_path / "again.jsonl")])
    assert "with its own image" not in capfd.readouterr().out
    assert not (tmp_path / "again-image-check.jsonl").exists()


def test_shrinking_is_measured_of_the_side_that_loses_more():
    rows = [Sample((user(Image(page((640, 320))), "?"), assistant("x")), "a")]
    found = resolution(rows, lambda size: (64, 64))
    assert found is not None
    assert found.shrunk == 10
    assert found.text == pytest.approx(11, abs=3)
    assert found.input_text == pytest.approx(found.text / 5)
    assert resolution(rows, lambda size: size).warning() is None
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    plain = [Sample((user(Image(PIL.Image.fromarray(noise)), "?"), assistant("x")), "b")]
    assert "3.1 times smaller" not in (resolution(plain, lambda s: (64, 64)).warning() or "")
    assert "5.0 times smaller" in resolution(plain, lambda s: (40, 40)).warning()
    assert resolution([Sample((user("?"), assistant("x")), "c")], lambda s: s) is None
    assert resolution(samples(0), lambda s: s) is None


class Projector:
    def shape(self, grid):
        return grid

    def tokens(self, grid):
        return grid[0] * grid[1]


@pytest.mark.parametrize(
    ("config", "patches"),
    [
        (ResizeConfig(), None), (PadConfig(), None), (CropConfig(), None), (NativeConfig(64), None),
        (AnyResConfig(), None), (ResizeConfig(), 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (640, 80)])
def test_input_size_is_what_becomes_of_the_image(config, patches, size):
    """A white image in each mode: its white area in the tiles has the size that is told."""
    vit = ViTConfig(image_size=64, patch_size=8, max_patches=patches)
    mode = build_mode(config, vit, Projector(), 0)
    white = PIL.Image.new("RGB", size, (255, 255, 255))
    tiles = [np.asarray(tile)[..., 0] for tile in mode.tiles(white)]
    told = mode.input_size(size)
    if isinstance(config, AnyResConfig):
        tiles = tiles[1:]
    seen = sum(int((tile > 200).sum()) for tile in tiles)
    if isinstance(config, CropConfig):
        assert min(told) == pytest.approx(64)
        return
    assert told[0] * told[1] == pytest.approx(seen, rel=0.1)
