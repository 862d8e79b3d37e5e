"""LLaVA, LLaVA-NeXT and PaliGemma against transformers, on random weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from chiasm.cli import main
from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.generation.generator import Generator
from chiasm.hub.export import export
from chiasm.hub.load import load
from chiasm.recipes.evaluate import contrastive
from stock_toys import STOCK, hub_layout, noise, relaid, ten_images, v5_layout, write

ONE, TWO = "what colour is it?", "and is it red?"


FAST = ("llava-clip", "next-clip", "paligemma2")


def named(names, fast):
    """The names as parameters, those that are not fast for make test-all."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope="module", params=named(STOCK, FAST))
def both(request, tmp_path_factory):
    """(name, folder, stock model, stock processor, our model, our processor)"""
    folder = tmp_path_factory.mktemp(request.param)
    stock, theirs = write(request.param, folder)
    return request.param, folder, stock, theirs, *load(folder)


def asked(name, theirs, images, words):
    """What is said to the stock model: a prompt as its processor takes it."""
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": words}]
    if name.startswith("paligemma"):
        return "<image>" * len(images) + words
    return theirs.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )


def samples():
    first = [noise(40, 23, 1), noise(20, 61, 2)], ONE
    second = [noise(30, 30, 3)], TWO
    return [first, second]


def prompts(processor, said):
    made = [Sample((user(*map(Image, images), words),)) for images, words in said]
    return [encoded for encoded, _ in processor.prompts(made)]


def test_prompts_and_pixels_are_the_stock_processors(both):
    name, _, _, theirs, model, processor = both
    for image in ten_images():
        given = theirs(text=asked(name, theirs, [image], ONE), images=[image], return_tensors="pt")
        ours = prompts(processor, [([image], ONE)])[0]
        assert ours.input_ids.tolist() == given["input_ids"][0].tolist()
        config = model.vision.config
        h, w = ours.image_grids[0]
        p = config.patch_size
        tiles = ours.image_patches.reshape(len(ours.image_grids), h, w, 3, p, p).transpose(
            0, 3, 1, 4, 2, 5
        )
        tiles = tiles.reshape(len(ours.image_grids), 3, h * p, w * p)
        mean, deviation = (np.array(c)[:, None, None] for c in (config.mean, config.deviation))
        pixels = given["pixel_values"].numpy().reshape(tiles.shape)
        np.testing.assert_allclose(((tiles + 1) / 2 - mean) / deviation, pixels, atol=1e-5)


def test_logits_and_gradients_with_padding_and_several_images(both):
    name, _, stock, theirs, model, processor = both
    said = samples()
    inputs = theirs(
        text=[asked(name, theirs, *one) for one in said],
        images=[images for images, _ in said],
        padding=True,
        return_tensors="pt",
    )
    inputs.pop("labels", None)
    real = inputs["attention_mask"].bool()
    assert not real.all()
    stock.zero_grad()
    expected = stock(**inputs, use_cache=False).logits[real]
    model.zero_grad()
    batch = pack([[encoded] for encoded in prompts(processor, said)])
    ours = model.logits(model(batch))[batch.segment_ids >= 0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    packed = pack([prompts(processor, said)])
    torch.testing.assert_close(model.logits(model(packed))[0], expected, atol=1e-5, rtol=1e-5)

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (expected * weights).mean().backward()
    (ours * weights).mean().backward()
    theirs_by_name = dict(stock.named_parameters())
    compared = 0
    for key, parameter in model.named_parameters():
        other = theirs_by_name[stock_name(key)]
        if other.grad is None:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        assert parameter.grad is not None, key
        scale = max(1.0, other.grad.abs().max().item())
        assert (parameter.grad - other.grad).abs().max() <= 1e-4 * scale, key
        compared += 1
    assert compared > 40


def stock_name(key):
    for ours, stock in (
        ("vision.model.", "model.vision_tower."),
        ("language.model.", "model.language_model."),
        ("language.lm_head.", "lm_head."),
        ("projector.layers.0.", "model.multi_modal_projector.linear_1."),
        ("projector.layers.1.", "model.multi_modal_projector.linear_2."),
        ("projector.linear.", "model.multi_modal_projector.linear."),
        ("projector.image_newline", "model.image_newline"),
    ):
        if key.startswith(ours):
            return stock + key.removeprefix(ours)
    raise AssertionError(key)


def test_greedy_tokens(both):
    name, _, stock, theirs, model, processor = both
    for images, words in samples():
        inputs = theirs(text=asked(name, theirs, images, words), images=images, return_tensors="pt")
        inputs.pop("labels", None)
        start = inputs["input_ids"].shape[1]
        written = stock.generate(**inputs, max_new_tokens=12, do_sample=False)[0, start:]
        expected = theirs.tokenizer.decode(written, skip_special_tokens=True)
        sample = Sample((user(*map(Image, images), words),))
        pieces = Generator(model, processor)([sample], SamplingParams(max_tokens=12))
        assert "".join(piece.text for _, piece in pieces) == expected
        assert len(written) > 1


def test_replies_are_supervised_to_their_end(both):
    name, _, _, theirs, _, processor = both
    sample = Sample((user(Image(noise(40, 23)), ONE), assistant("red circle")))
    encoded = processor.encode(sample)
    learnt = encoded.labels[encoded.labels >= 0].tolist()
    assert theirs.tokenizer.decode(learnt[:-1]).strip() == "red circle"
    assert learnt[-1] == theirs.tokenizer.eos_token_id
    if name.startswith("paligemma"):
        given = theirs(
            text="<image>" + ONE,
            images=[noise(40, 23)],
            suffix="red circle",
            return_tensors="pt",
        )
        assert encoded.input_ids.tolist() == given["input_ids"][0, : len(encoded)].tolist()
        last = given["labels"][0, 1:][given["labels"][0, 1:] >= 0]
        assert learnt == last.tolist()


LAYOUTS = {"as saved": lambda tensors: tensors, "published": hub_layout, "v5": v5_layout}


@pytest.mark.parametrize(
    "name", named(["llava-clip", "llava-tied", "next-clip", "paligemma"], ("next-clip",))
)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_round_trips_change_no_byte(name, layout, tmp_path):
    there, back = tmp_path / "stock", tmp_path / "back"
    write(name, there, torch.bfloat16)
    relaid(there, LAYOUTS[layout])
    said = export(there, back, "hf")
    assert "logits apart by at most" in said
    before, after = hub_layout(load_file(there / "model.safetensors")), {}
    for file in back.glob("*.safetensors"):
        after |= load_file(file)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype == torch.bfloat16
        assert torch.equal(value.view(torch.int16), after[key].view(torch.int16)), key


@pytest.mark.parametrize("name", named(STOCK, FAST))
def test_what_is_exported_is_read_alike(name, tmp_path):
    there, back = tmp_path / "stock", tmp_path / "back"
    stock, theirs = write(name, there)
    export(there, back, "hf")
    model, report = AutoModelForImageTextToText.from_pretrained(back, output_loading_info=True)
    assert not any(report.values())
    again = AutoProcessor.from_pretrained(back)
    image = noise(40, 90)
    text = asked(name, theirs, [image], ONE)
    inputs, twice = (one(text=text, images=[image], return_tensors="pt") for one in (theirs, again))
    inputs.pop("labels", None)
    twice.pop("labels", None)
    assert inputs.keys() == twice.keys()
    for key, value in inputs.items():
        torch.testing.assert_close(value, twice[key])
    torch.testing.assert_close(model(**twice).logits, stock(**inputs).logits)
    if not name.startswith("paligemma"):
        assert asked(name, again, [image], ONE) == text
    config = json.loads((back / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["text_config"]["rope_theta"] == 10000.0
    told = json.loads((back / "preprocessor_config.json").read_text())
    assert told["processor_class"] == type(theirs).__name__


def test_the_commands_take_a_stock_folder(tmp_path, capsys):
    write("llava-clip", tmp_path)
    noise(40, 30).save(tmp_path / "a.png")
    main(["chat", str(tmp_path), str(tmp_path / "a.png"), ONE, "--max-tokens", "3"])
    assert capsys.readouterr().out.strip()
    assert contrastive(tmp_path) is None  # a whole model answers questions itself


def test_a_checkpoint_with_a_weight_missing_is_refused(tmp_path):
    from safetensors.torch import save_file

    write("llava-clip", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(key for key in tensors if "linear_2.bias" in key))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing weights, first .*linear_2\.bias"):
        load(tmp_path)


def test_weights_are_written_in_the_precision_they_have_whatever_the_config_says(tmp_path):
    there = tmp_path / "stock"
    write("llava-clip", there)
    config = json.loads((there / "config.json").read_text()) | {"dtype": "float16"}
    (there / "config.json").write_text(json.dumps(config))
    assert "logits apart by at most" in export(there, tmp_path / "back", "hf")
    file = next((tmp_path / "back").glob("*.safetensors"))
    assert {value.dtype for value in load_file(file).values()} == {torch.float32}


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    there, back = tmp_path / "stock", tmp_path / "back"
    write("llava-clip", there)

    def wrong(*_):
        raise CheckpointError("differs")

    monkeypatch.setattr("chiasm.hub.formats.llava.compare", wrong)
    with pytest.raises(CheckpointError, match="differs"):
        export(there, back, "hf")
    assert not back.exists()


def test_an_unknown_layout_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(
        CheckpointError, match=r"a 'mamba', which is neither .*LLaVA-NeXT, PaliGemma"
    ):
        load(tmp_path)
