"""Tokenizers and their codes through the recipes: what a user types."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from chiasm.cli import main
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.progress import silent
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.recipes.recipe import Recipe, find
from chiasm.recipes.run import run
from chiasm.train.stage import Stage
from chiasm.unified.config import AutoencoderConfig, FSQConfig, ResidualVQConfig, UnifiedConfig

RATES = {"encoder": 1e-3, "decoder": 1e-3}
TOKENIZER = AutoencoderConfig(
    FSQConfig((4, 4)), 16, multipliers=(1, 1, 1), decoder_channels=64, decoder_blocks=1
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    samples = []
    for n in range(8):
        image = PIL.Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        turns = (user(Image(image), "what is this?"), assistant(f"no {n}"))
        samples.append(Sample(turns, str(n), meta={"caption": f"no {n}"}))
    write_messages(samples, folder / "train.jsonl")
    write_messages(samples[:2], folder / "test.jsonl")
    return str(folder)


def tokenizer(data, folder, rates=RATES, **changes):
    stage = Stage("t", 2, rates, batch_images=4, autocast="none", log_every=1)
    recipe = Recipe(replace(TOKENIZER, **changes), (stage,), data)
    run(recipe, folder, show=silent)
    return folder


@pytest.mark.parametrize("quantizer", [FSQConfig((4, 4)), ResidualVQConfig(16, 4, 2)])
def test_precomputed_codes_train_the_same_model(data, tmp_path, quantizer):
    made = tokenizer(data, tmp_path / "t", quantizer=quantizer)
    main(["precompute", str(made), str(tmp_path / "codes"), "--data", data])
    config = UnifiedConfig(
        str(made),
        text_vocabulary=280,
        hidden_size=32,
        layers=1,
        heads=2,
        kv_heads=1,
        intermediate_size=48,
        rope="2d",
    )
    stage = Stage(
        "u", 3, {"embedding": 1e-3, "transformer": 1e-3}, "chat+text_to_image", batch_tokens=128
    )
    recipe = Recipe(config, (replace(stage, autocast="none"),), data)
    run(recipe, tmp_path / "fresh", show=silent)
    stored = replace(config, image_codes=str(tmp_path / "codes"))
    run(replace(recipe, model=stored), tmp_path / "stored", show=silent)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("fresh", "stored")]
    assert weights[0] == weights[1]
    main(
        [
            "generate",
            str(tmp_path / "stored"),
            "no 3",
            "-o",
            str(tmp_path / "a.png"),
            "--best-of",
            "1",
        ]
    )
    assert PIL.Image.open(tmp_path / "a.png").size == (16, 16)
    other = tokenizer(data, tmp_path / "other", quantizer=quantizer, image_size=32)
    with pytest.raises(CheckpointError, match="precompute them again"):
        run(replace(recipe, model=replace(stored, tokenizer=str(other))), tmp_path / "x")


def test_a_perceptual_and_adversarial_tokenizer_from_the_command_line(data, tmp_path):
    encoder = find("encoder")
    stage = replace(encoder.stages[0], steps=1, batch_images=4)
    run(replace(encoder, stages=(stage,), data=data), tmp_path / "e", show=silent)
    settings = [
        "--model.image_size=16",
        "--model.vit",
        '{"patch_size": 4, "width": 32, "layers": 1, "heads": 2}',
        "--model.quantizer",
        '{"kind": "lfq", "bits": 6}',
        "--model.perceptual=0.5",
        f"--model.perceptual_encoder={tmp_path / 'e'}",
        "--model.adversarial=0.5",
        "--stages.0.steps=2",
        "--stages.0.log_every=1",
        "--stages.0.batch_images=4",
    ]
    call = ["train", "tokenizer", "--data", data, "--out", str(tmp_path / "t"), *settings]
    with pytest.raises(SystemExit):
        main(call)  # nothing trains the discriminator
    main([*call, "--stages.0.lr", json.dumps({**RATES, "discriminator": 1e-3})])
    lines = (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()
    for name in ("perceptual", "hinge", "fooled", "adaptive_weight", "codebook_perplexity"):
        assert all(np.isfinite(json.loads(line)[name]) for line in lines)
    assert len(lines) == 2


def test_features_of_something_else_are_refused(data, tmp_path):
    made = tokenizer(data, tmp_path / "t")
    with pytest.raises(CheckpointError, match=r"model\.perceptual_encoder needs"):
        tokenizer(data, tmp_path / "x", perceptual=1.0, perceptual_encoder=str(made))
    with pytest.raises(ConfigError, match="no stage trains it"):
        tokenizer(data, tmp_path / "y", adversarial=1.0)
