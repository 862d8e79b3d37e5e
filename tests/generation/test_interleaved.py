"""Any-to-any from one checkpoint: a tiny model learns a document that mixes text and images, and
writes it from one request."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

from chiasm.core.batch import pack
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, Text, assistant, user
from chiasm.data.objectives import (
    CHANGES,
    DOCUMENTS,
    DRAW_SAY_REDRAW,
    Pairs,
    caption,
    edit,
    interleaved,
    text_to_image,
)
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub import unified
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig

TOKENS = AutoencoderConfig(
    quantizer=FSQConfig((4, 3)),
    image_size=8,
    base_channels=32,
    multipliers=(1, 1, 1),
    decoder_channels=64,
    decoder_blocks=1,
)
SHAPE = UnifiedConfig(
    hidden_size=64, layers=2, heads=4, kv_heads=2, intermediate_size=96, image_weight=1.0
)
REQUEST = "draw a red circle, then say what you drew, then draw it blue"


def known(color, shape, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    meta = {"color": color, "shape": shape, "caption": f"a {color} {shape}"}
    return Sample((user(Image(PIL.Image.fromarray(pixels))),), f"{color} {shape}", meta=meta)


RED, BLUE = known("red", "circle", 0), known("blue", "circle", 1)
SQUARE = known("green", "square", 2)


def learned(steps=160, **changes):
    """A model that has learned the document and its parts by heart."""
    torch.manual_seed(0)
    words = train_bpe([REQUEST, "a red circle", "make it blue"] * 4, 300)
    autoencoder = Autoencoder(TOKENS)
    with torch.no_grad():  # so that images differ in their codes
        autoencoder.encoder.conv_out.weight.mul_(20)
    config = dataclasses.replace(SHAPE, **changes)
    model, processor = unified.build(config, words, autoencoder)
    red, blue = RED.images[0], BLUE.images[0]
    lessons = [
        Sample((user(REQUEST), assistant(red, "a red circle", blue))),
        Sample((user("a red circle"), assistant(red))),
        Sample((user(blue), assistant("a blue circle"))),
        Sample((user(red, "make it blue"), assistant(blue))),
    ]
    batch = pack([[processor.encode(lesson)] for lesson in lessons])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    return Generator(model, processor)


def parts(respond, sample, sampling):
    """A reply as runs of words and images' bytes, in order, and how it ended."""
    said, finish = [], None
    for _, piece in respond([sample], sampling):
        if piece.image is not None:
            said.append(piece.image.tobytes())
        if piece.text and said and isinstance(said[-1], str):
            said[-1] += piece.text
        elif piece.text:
            said.append(piece.text)
        finish = piece.finish
    return said, finish


def restored(respond, sample):
    """The bytes of a sample's image, through the tokenizer."""
    codec = respond.processor.codec
    (slot,) = codec.encode([sample.images[0].load()])
    ids = torch.from_numpy(slot.input_ids)
    return codec.decode(ids[codec.vocabulary.is_code(ids)]).tobytes()


@pytest.mark.parametrize("objective", ["next", pytest.param("masked", marks=pytest.mark.slow)])
def test_one_request_draws_says_and_draws_again(objective):
    respond = learned(image_objective=objective)
    red, blue = restored(respond, RED), restored(respond, BLUE)
    assert red != blue
    sampling = SamplingParams(max_images=2, max_tokens=40, image_steps=4)
    interleaved = Sample((user(REQUEST),))
    assert parts(respond, interleaved, sampling) == ([red, "a red circle", blue], "stop")
    # The other ways, from the same weights.
    drawing = dataclasses.replace(sampling, max_images=1, draw_first=True)
    assert parts(respond, Sample((user("a red circle"),)), drawing)[0] == [red]
    assert parts(respond, Sample((user(BLUE.images[0]),)), sampling)[0] == ["a blue circle"]
    told = Sample((user(RED.images[0], "make it blue"),))
    assert parts(respond, told, drawing)[0] == [blue]


def test_pairs_keep_the_shape_and_change_the_colour():
    green = known("green", "circle", 3)
    pairs, random = Pairs([RED, BLUE, green, SQUARE]), np.random.default_rng(0)
    found = [pairs.other(RED, random) for _ in range(200)]
    assert {value for _, value in found} == {"blue", "green"}
    assert {image for image, _ in found} == {BLUE.images[0], green.images[0]}
    assert 60 < sum(value == "blue" for _, value in found) < 140
    assert pairs.other(SQUARE, random) is None
    assert pairs.other(RED.replace(meta={"shape": ["list"], "color": 3}), random) is None


def test_an_edit_shows_the_image_and_asks_for_another_colour():
    view, random = edit(Pairs([RED, BLUE])), np.random.default_rng(0)
    asked = set()
    for _ in range(50):
        seen = view(RED, random)
        request, reply = seen.turns
        assert request.content[0] is RED.images[0]
        assert reply.content == (BLUE.images[0],)
        asked.add(request.text)
    assert asked == {words.format("blue") for words in CHANGES}
    assert view(SQUARE, random) is None


def test_documents_mix_in_three_ways():
    view, random = interleaved(Pairs([RED, BLUE])), np.random.default_rng(0)
    red, blue, caption = RED.images[0], BLUE.images[0], Text("a red circle")
    ways = {
        DRAW_SAY_REDRAW.format("a red circle", "blue"): (red, caption, blue),
        DOCUMENTS[1].format("a red circle"): (red, caption),
        DOCUMENTS[2].format("blue"): (caption, blue),
    }
    assert REQUEST in ways
    found = {}
    for _ in range(60):
        request, reply = view(RED, random).turns
        found[request.text] = reply.content
        assert bool(request.content[0] is red) == request.text.startswith("say what it is")
    assert found == ways


def test_conditions_are_left_out_as_often_as_asked():
    pairs, random = Pairs([RED, BLUE]), np.random.default_rng(0)
    for view in (interleaved(pairs, 0.3), edit(pairs, 0.3)):
        bare = [not view(RED, random).turns[0].content for _ in range(400)]
        assert 80 < sum(bare) < 160
    assert text_to_image(RED, random) is not None
    assert caption(RED, random) is not None
