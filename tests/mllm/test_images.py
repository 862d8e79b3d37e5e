"""Every way of showing images against the stock processor of the model it comes from."""

import dataclasses
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from chiasm.core.batch import pack
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.hub.load import load
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import (
    AnyResConfig,
    AveragePoolConfig,
    CropConfig,
    DAbstractorConfig,
    LinearConfig,
    MLLMConfig,
    MLPConfig,
    NativeConfig,
    PadConfig,
    PerceiverConfig,
    PixelShuffleConfig,
    ResizeConfig,
    SplitConfig,
)
from chiasm.mllm.images.split import words_needed
from chiasm.mllm.projectors import build_projector
from chiasm.mllm.scatter import scatter
from chiasm.train.optim import set_trained
from chiasm.train.stage import Stage
from chiasm.vision.config import TowerConfig, TowerOptions, ViTConfig
from chiasm.vision.patches import _padded, _part_resized
from chiasm.vision.pretrained import OPENAI, load_encoder
from chiasm.vision.vit import ViT

DATA = Path("/work/shared/data")
SIDE, PATCH = 56, 14
IMAGE = 7
SQUARE = {"height": SIDE, "width": SIDE}
MEAN, DEVIATION = OPENAI
COLOURS = {"image_mean": list(MEAN), "image_std": list(DEVIATION)}
LINEAR, MERGED = LinearConfig(), MLPConfig(merge=2)
PINPOINTS = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))

SIZES = [(56, 56), (40, 90), (300, 71), (71, 300), (33, 34), (640, 480), (17, 5), (600, 20), (1, 1)]
MODES = {
    "resize": ResizeConfig(),
    "pad": PadConfig(),
    "crop": CropConfig(),
    "native": NativeConfig(20),
    "anyres": AnyResConfig(),
    "split": SplitConfig(longest_edge=4 * SIDE),
    "whole": SplitConfig(longest_edge=2 * SIDE, do_image_splitting=False),
}


def make_image(width, height, seed=0):
    """Coarse noise enlarged: edges, but none that only one resampling shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BILINEAR)


def make_images():
    """Ten: of every shape, and real ones where they are."""
    made = [make_image(w, h, n) for n, (w, h) in enumerate(SIZES)]
    sets = ("photos-captions", "charts-qa", "receipts", "screenshots", "tables-qa")
    real = [sorted((DATA / name / "images").glob("*"))[:2] for name in sets if DATA.exists()]
    return made + [PIL.Image.open(path).convert("RGB") for paths in real for path in paths]


def encoder(**changes):
    config = TowerConfig(
        "x", "clip_vision_model", 8, 1, (1,), False, SIDE, PATCH, None, 3, MEAN, DEVIATION
    )
    return dataclasses.replace(config, **changes)


def words_of(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenizer():
    made = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it?\n\n\n red circle user assistant"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    made.add_tokens(words_needed(MODES["split"], SIDE), special_tokens=True)
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def codec(images, config=None, projector=LINEAR, words=None):
    config = config or encoder()
    made = build_projector(projector, config.width, 6, 0.1)
    return MLLMCodec(config, made, IMAGE, images, words or split_words)


def split_words(text):
    """Every image's id, and one for all that is between two."""
    return [IMAGE if part == "<image>" else 1 for part in re.split("(<image>)", text) if part]


def pixels(slot, config):
    """Our patches as the encoder normalises them, tile by tile as pixels [n 3 H W]."""
    h, w = slot.grid
    p = config.patch_size
    tiles = slot.image_patches.reshape(slot.tiles, h, w, 3, p, p).transpose(0, 3, 1, 4, 2, 5)
    tiles = tiles.reshape(slot.tiles, 3, h * p, w * p)
    mean, deviation = (np.array(c)[:, None, None] for c in (config.mean, config.deviation))
    return ((tiles + 1) / 2 - mean) / deviation


def assert_same_pixels(slot, config, expected):
    ours = pixels(slot, config)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "stock"),
    [
        (ResizeConfig(), SiglipImageProcessorPil(size=SQUARE, **COLOURS)),
        (
            CropConfig(),
            CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, **COLOURS),
        ),
        (
            PadConfig(),
            LlavaImageProcessorPil(
                do_pad=True, size={"shortest_edge": SIDE}, crop_size=SQUARE, **COLOURS
            ),
        ),
    ],
    ids=["siglip", "clip", "llava"],
)
def test_one_square_is_the_stock_processors(images, stock):
    ours = codec(images, encoder(resample=int(stock.resample)))
    for image in make_images():
        (slot,) = ours.encode([image])
        expected = stock(image, return_tensors="np")["pixel_values"]
        assert_same_pixels(slot, ours.config, expected)
        assert ours.tokens(image.size) == len(slot.input_ids) == 16


@pytest.mark.parametrize("images", [ResizeConfig(), NativeConfig(20)])
def test_native_resolution_is_naflexs(images):
    """By the encoder's own number of patches, or by the model's for any encoder."""
    naflex = isinstance(images, ResizeConfig)
    limits = {"max_patches": 20, "image_size": 20 * PATCH} if naflex else {}
    ours = codec(images, encoder(resample=2, **limits))
    stock = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=20, **COLOURS)
    for image in make_images():
        (slot,) = ours.encode([image])
        expected = stock(image, return_tensors="np")
        rows, columns = expected["spatial_shapes"][0]
        assert slot.grid == (rows, columns)
        patches = expected["pixel_values"][0, : rows * columns]  # in the order (y, x, channel)
        tiles = patches.reshape(rows, columns, PATCH, PATCH, 3).transpose(4, 0, 2, 1, 3)
        tiles = tiles.reshape(1, 3, rows * PATCH, columns * PATCH)
        assert_same_pixels(slot, ours.config, tiles)
        assert ours.tokens(image.size) == len(slot.input_ids) == rows * columns


def test_anyres_is_llava_nexts():
    stock = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size=SQUARE,
        image_grid_pinpoints=[list(p) for p in PINPOINTS],
        **COLOURS,
    )
    processor = LlavaNextProcessor(
        stock, tokenizer(), PATCH, "default", num_additional_image_tokens=1
    )
    ours = codec(AnyResConfig(PINPOINTS))
    for image in make_images():
        (slot,) = ours.encode([image])
        assert_same_pixels(slot, ours.config, stock(image, return_tensors="np")["pixel_values"][0])
        ids = processor(images=image, text="<image>")["input_ids"][0]
        assert ours.tokens(image.size) == len(slot.input_ids) == len(ids)
        assert codec(AnyResConfig()).tokens(image.size) == len(ids)  # the published shapes


@pytest.mark.parametrize("stock", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize("name", ["split", "whole"])
def test_split_is_idefics3s(stock, name):
    words, images = tokenizer(), MODES[name]
    theirs = stock(
        size={"longest_edge": images.longest_edge},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=images.do_image_splitting,
        **COLOURS,
    )
    processor = Idefics3Processor(theirs, words, image_seq_len=4)
    marker = words.convert_tokens_to_ids("<image>")
    made = build_projector(PixelShuffleConfig(2), 8, 6, 0.1)
    ours = MLLMCodec(encoder(resample=1), made, marker, images, words_of(words))
    for image in make_images():
        (slot,) = ours.encode([image])
        expected = processor(images=[image], text="<image>", add_special_tokens=False)
        assert slot.input_ids.tolist() == expected["input_ids"][0]
        assert slot.tiles == len(expected["pixel_values"][0])
        assert_same_pixels(slot, ours.config, np.array(expected["pixel_values"][0]))
        assert ours.tokens(image.size) == len(slot.input_ids)
        assert (slot.place == np.flatnonzero(slot.input_ids == marker)).all()


@torch.no_grad()
def test_anyres_tokens_stand_where_llava_next_puts_them():
    """Order, unpadding and ends of rows, by its own class on the same weights."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=20, hidden_size=6, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    pinpoints = [list(p) for p in PINPOINTS]
    stock = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE,
            image_grid_pinpoints=pinpoints,
        )
    ).eval()
    theirs = stock.model.multi_modal_projector
    projector = build_projector(MLPConfig(layers=2, merge=1), 8, 6, 0.1)
    projector.layers[0].load_state_dict(theirs.linear_1.state_dict())
    projector.layers[1].load_state_dict(theirs.linear_2.state_dict())
    ours = MLLMCodec(encoder(), projector, IMAGE, AnyResConfig(PINPOINTS))
    for image in make_images()[:9]:
        (slot,) = ours.encode([image])
        inputs = torch.from_numpy(pixels(slot, ours.config)).float()
        sizes = torch.tensor([[image.height, image.width]])
        expected = stock.model.get_image_features(inputs[None], sizes).pooler_output[0]
        states = stock.model.vision_tower(inputs, output_hidden_states=True).hidden_states[-2]
        grids = torch.tensor([slot.grid] * slot.tiles)
        tokens = projector(states[:, 1:].flatten(0, 1), grids)
        slots = torch.ones(1, len(slot.input_ids), dtype=torch.bool)
        place = torch.from_numpy(slot.place)
        found = scatter(tokens, place, slots, stock.model.image_newline)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.sampled_from(list(MODES)),
    st.sampled_from([LinearConfig(), PixelShuffleConfig(2), PerceiverConfig(3, 1, 2),
                     AveragePoolConfig(3), DAbstractorConfig(2, 1, 8, 2)]),
    st.booleans(),
)  # fmt: skip
def test_a_slot_is_what_its_size_says_and_complete(width, height, name, projector, variable):
    limits = {"max_patches": 16, "image_size": 16 * PATCH} if variable else {}
    ours = codec(MODES[name], encoder(**limits), projector)
    image = PIL.Image.new("RGB", (width, height))
    (slot,) = ours.encode([image])
    h, w = slot.grid
    assert len(slot.image_patches) == slot.tiles * h * w
    assert ours.tokens(image.size) == len(slot.input_ids)
    made = slot.tiles * ours.mode.projector.tokens(slot.grid)
    kept = slot.place[slot.place >= 0]
    assert len(slot.place) == made
    assert len(set(kept)) == len(kept)  # no two at one place
    assert (slot.input_ids[kept] == IMAGE).all()
    ends = np.setdiff1d(np.flatnonzero(slot.input_ids == IMAGE), kept)
    rows = name == "anyres" and ours.mode.projector.shape(slot.grid) is not None
    # Of a sliver's tiles nothing but padding may be left: no row, no end of one.
    assert rows if len(ends) else not rows or max(width, height) > 4 * min(width, height)
    assert len(kept) == made or rows


COLOUR = (17, 130, 240)
FILTERS = st.sampled_from([1, 2, 3])  # Lanczos, bilinear, bicubic


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 90), FILTERS)
def test_padding_equals_a_padded_square_resized(width, height, side, resample):
    image, whole = make_image(width, height), max(width, height)
    square = PIL.Image.new("RGB", (whole, whole), COLOUR)
    square.paste(image, ((whole - width) // 2, (whole - height) // 2))
    expected = np.asarray(square.resize((side, side), PIL.Image.Resampling(resample)), np.int16)
    found = np.asarray(_padded(image, side, COLOUR, resample), np.int16)
    assert np.abs(found - expected).max() <= 2


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 90), FILTERS)
def test_a_crop_equals_the_middle_of_the_whole_resized(width, height, side, resample):
    image, shorter = make_image(width, height), min(width, height)
    sizes = [int(side * edge / shorter) for edge in (width, height)]
    whole = image.resize(sizes, PIL.Image.Resampling(resample))
    left, top = ((edge - side) // 2 for edge in sizes)
    box = (left, top, left + side, top + side)
    expected = np.asarray(whole.crop(box), np.int16)
    found = np.asarray(_part_resized(image, sizes, box, resample), np.int16)
    assert np.abs(found - expected).max() <= 2


@contextmanager
def more_memory(allowed):
    """At most so many bytes of address space more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
@pytest.mark.parametrize("name", MODES)
def test_a_slivers_memory_is_bounded(name, variable):
    """Side 336 of a 100,000 x 1 image: 40 GB when it was padded, 34 when it was resized whole."""
    limits = {"image_size": 336} | ({"max_patches": 576} if variable else {})
    ours = codec(MODES[name], encoder(**limits))
    for size in ((100_000, 1), (1, 100_000), (7, 40_000), (1280, 9_000)):
        image = PIL.Image.new("RGB", size, "red")
        with more_memory(2**28):
            (slot,) = ours.encode([image])
        assert len(slot.input_ids) == ours.tokens(size)


def test_pinpoints_must_be_whole_tiles():
    with pytest.raises(ConfigError, match=r"100 x 56 pixels, but the encoder sees tiles of 56"):
        codec(AnyResConfig(((100, 56),)))


def test_frames_of_a_clip_are_never_cut():
    image = make_image(300, 71)
    for images in MODES.values():
        (slot,) = codec(images).frames.encode([image])
        assert slot.tiles == 1
    assert codec(MODES["native"]).frames.images == MODES["native"]


# In a whole model.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    words = tokenizer()
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    llama = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True, max_position_embeddings=4096,
        initializer_range=0.3,
    )  # fmt: skip
    bare = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle user assistant"] * 4, 290),
        eos_token="<|im_end|>",
    )
    bare.chat_template = words.chat_template
    made = {
        "clip": CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, intermediate_size=32)),
        "siglip": SiglipVisionModel(
            SiglipVisionConfig(**tower, image_size=32, intermediate_size=32)
        ),
        "dinov2": Dinov2Model(Dinov2Config(**tower, image_size=32)),
        "llama": LlamaForCausalLM(llama),
    }
    paths = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, model in made.items():
        model.save_pretrained(paths[name])
    bare.save_pretrained(paths["llama"])
    return paths


VISION = ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2)


def model_of(folders, images, projector=MERGED, **settings):
    torch.manual_seed(1)
    config = MLLMConfig(
        language_model=str(folders["llama"]),
        projector=projector,
        lora=None,
        image_processing=images,
        **settings,
    )
    return (*hub.build(config, ViT(VISION)), config)


def samples():
    """Two turns with an image each, no image, two images in one turn, branches."""
    first, second, third = (Image(make_image(*size)) for size in ((40, 17), (10, 30), (64, 64)))
    return [
        Sample(
            (user(first, "what?"), assistant("red"), user("and ", second), assistant("it")), "2"
        ),
        Sample((user("is it red?"), assistant("no")), "none"),
        Sample((user(third, " or ", first, "?"), assistant("a circle")), "one turn"),
        Sample(
            (user(second, "what?"), assistant("red"), user("is it?"), assistant("no")),
            "branches",
            independent=True,
        ),
    ]


IN_MODEL = {
    **{name: MODES[name] for name in ("resize", "pad", "crop", "anyres")},
    "native": NativeConfig(9),
    "split": SplitConfig(longest_edge=32),
}


@pytest.mark.parametrize("name", IN_MODEL)
def test_packed_with_text_equals_alone_and_is_restored(name, folders, tmp_path):
    model, processor, config = model_of(folders, IN_MODEL[name])
    model.eval()
    encoded = [processor.encode(sample) for sample in samples()]
    alone = [model.loss(pack([[e]])).sum for e in encoded]
    for rows in ([encoded], [encoded[:1], encoded[1:]], [encoded[2:], encoded[:2]]):
        torch.testing.assert_close(model.loss(pack(rows)).sum, sum(alone), atol=1e-4, rtol=1e-5)
    hub.save(tmp_path / "run", model, processor, config)
    again, other = load(tmp_path / "run")
    back = [other.encode(sample) for sample in samples()]
    for a, b in zip(encoded, back, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(again(pack([back])), model(pack([encoded])))


@pytest.mark.parametrize("name", IN_MODEL)
def test_a_batch_without_images_gives_the_eyes_no_gradient(name, folders):
    model, processor, _ = model_of(folders, IN_MODEL[name])
    set_trained(model, Stage("s", 1, lr={"vision": 1.0, "projector": 1.0, "language_model": 1.0}))
    seeing = [*model.vision.parameters(), *model.projector.parameters()]
    with_text = [processor.encode(sample) for sample in samples()]
    model.loss(pack([with_text])).sum.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in seeing)
    model.zero_grad(set_to_none=True)
    loss = model.loss(pack([[with_text[1]]]))
    loss.sum.backward()
    assert loss.count > 0
    assert all(p.grad is None for p in seeing)
    assert model.language.get_input_embeddings().weight.grad.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(IN_MODEL)), st.integers(1, 400), st.integers(0, 3), st.booleans())
def test_truncation_never_cuts_an_image(made, name, limit, which, ask):
    model, processor = made[name]
    sample = samples()[which]
    whole = processor.encode(sample)
    processor.max_length = limit
    try:
        cut = processor.prompts([sample])[0][0] if ask else processor.encode(sample)
    except DataError as error:
        assert f"more than the {limit} allowed" in str(error)  # noqa: PT017
        return
    finally:
        processor.max_length = 4096
    assert len(cut) <= limit or sample.independent
    assert (cut.input_ids == model.image_token).sum() == (
        whole.input_ids == model.image_token
    ).sum()
    if cut.image_patches is not None:
        assert cut.place.tolist() == whole.place.tolist()
        assert np.array_equal(cut.image_patches, whole.image_patches)


@pytest.fixture(scope="module")
def made(folders):
    built = {name: model_of(folders, images, max_length=4096) for name, images in IN_MODEL.items()}
    return {name: (model.eval(), processor) for name, (model, processor, _) in built.items()}


@torch.no_grad()
def test_words_for_tiles_are_added_once_and_well(folders, tmp_path):
    model, processor, config = model_of(folders, IN_MODEL["split"])
    words = processor.template.tokenizer
    names = words_needed(config.image_processing, 16)
    assert names[2:] == ["<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>"]
    table = model.language.get_input_embeddings().weight
    ids = words.convert_tokens_to_ids(names)
    assert len(set(ids)) == len(names)
    assert max(ids) < len(table) == model.head.weight.shape[0]
    near = 0.02 * float(table.std())  # the mean of all others, a little apart from each other
    for i in ids:
        torch.testing.assert_close(table[i], table[: min(ids)].mean(0), atol=near, rtol=0)
    hub.save(tmp_path / "run", model, processor, config)
    again, other = load(tmp_path / "run")
    assert len(other.template.tokenizer) == len(words)
    assert again.language.get_input_embeddings().weight.shape == table.shape


@torch.no_grad()
def test_the_end_of_a_row_is_learned_and_used(made):
    model, processor = made["anyres"]
    sample = samples()[2]
    batch = pack([[processor.encode(sample)]])
    slots = (batch.input_ids == model.image_token)[0]
    kept = batch.place[batch.place >= 0]
    ends = slots.clone()
    ends[kept] = False
    assert ends.any()
    embedded = model.embed(batch)[0]
    newline = model.projector.image_newline
    assert (embedded[ends] == newline).all()
    assert "projector" in model.groups()
    assert any(p is newline for p in model.groups()["projector"].parameters())


# Class tokens.


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, (-1, 1)])
@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_class_tokens_come_before_the_patches(name, layer, folders):
    with_it = load_encoder(str(folders[name]), TowerOptions(layer, class_token=True))
    without = load_encoder(str(folders[name]), TowerOptions(layer))
    patches, grids = torch.randn(16 + 6, 192), torch.tensor([[4, 4], [2, 3]])
    full, default = with_it(patches, grids), without(patches, grids)
    assert full.shape == (2 + 22, with_it.config.width)
    keep = torch.ones(24, dtype=torch.bool)
    keep[[0, 17]] = False
    assert torch.equal(full[keep], default)
    kind = {"clip": CLIPVisionModel, "dinov2": Dinov2Model}[name]
    stock = kind.from_pretrained(folders[name]).eval()
    square = with_it.model.config.image_size // 8
    image = torch.randn(1, 3, 32, 32)
    states = stock(image, output_hidden_states=True).hidden_states
    mean, deviation = (torch.tensor(c)[:, None, None] for c in
                       (with_it.config.mean, with_it.config.deviation))  # fmt: skip
    raw = (image[0] * deviation + mean) * 2 - 1
    raw = raw.unflatten(2, (square, 8)).unflatten(1, (square, 8)).permute(1, 3, 0, 2, 4)
    layers = layer if isinstance(layer, tuple) else (layer,)
    expected = torch.cat([states[n][0] for n in layers], -1)
    found = with_it(raw.reshape(16, 192), torch.tensor([[4, 4]]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("images", [ResizeConfig(), AnyResConfig()])
def test_a_model_with_class_tokens_trains(images, folders):
    options = TowerOptions(class_token=True)
    config = MLLMConfig(
        language_model=str(folders["llama"]), projector=LinearConfig(), lora=None, vision=options,
        image_processing=images, max_length=4096,
    )  # fmt: skip
    model, processor = hub.build(config, load_encoder(str(folders["clip"]), options))
    slot = processor.codec.encode([make_image(32, 32)])[0]
    tiles = 1 if isinstance(images, ResizeConfig) else slot.tiles
    assert len(slot.place) == 17 * tiles
    batch = pack([[processor.encode(sample) for sample in samples()]])
    alone = sum(model.loss(pack([[processor.encode(s)]])).sum.item() for s in samples())
    loss = model.loss(batch)
    assert loss.sum.item() == pytest.approx(alone, rel=1e-4)
    loss.sum.backward()
    assert model.cost(batch).flops > 0


def test_class_tokens_that_are_not_there_or_not_wanted_are_refused(folders):
    with pytest.raises(ConfigError, match="a 'siglip_vision_model', which has none"):
        load_encoder(str(folders["siglip"]), TowerOptions(class_token=True))
    options = TowerOptions(class_token=True)
    config = MLLMConfig(
        language_model=str(folders["llama"]), projector=PerceiverConfig(3, 1, 2), vision=options
    )
    with pytest.raises(ConfigError, match="other than one token of one feature"):
        hub.build(config, load_encoder(str(folders["clip"]), options))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arrange_equals_a_loop(data):
    slots = torch.tensor(data.draw(st.lists(st.booleans(), min_size=1, max_size=12)))[None]
    where = slots[0].nonzero()[:, 0].tolist()
    choice = st.sampled_from([-1, *where])
    place = torch.tensor(data.draw(st.lists(choice, max_size=15)), dtype=torch.long)
    tokens, newline = torch.randn(len(place), 3), torch.randn(3)
    rows = []
    for i in where:
        mine = [tokens[j] for j in range(len(place)) if place[j] == i]
        rows.append(sum(mine) / len(mine) if mine else newline)
    found = scatter(tokens, place, slots, newline)
    expected = torch.stack(rows) if rows else torch.zeros(0, 3)
    torch.testing.assert_close(found, expected)
    if set(where) <= set(place.tolist()):
        torch.testing.assert_close(scatter(tokens, place, slots, None), expected)
    else:
        with pytest.raises(ValueError, match=f"{len(where)} image placeholders but"):
            scatter(tokens, place, slots, None)
