"""Idefics3 and SmolVLM in and out, against transformers on random weights."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from chiasm.core.batch import pack
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub import mllm as hub
from chiasm.hub.export import export
from chiasm.hub.formats.idefics3 import IDEFICS3, SMOLVLM, positions_kept, reader, tensors
from chiasm.hub.load import load
from chiasm.mllm.config import MLLMConfig, MLPConfig, PixelShuffleConfig, SplitConfig
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT
from stock_toys import ten_images

TILE, PATCH, LONGEST = 32, 8, 64
WORDS = [
    "<|im_start|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
]
# As the published one: a colon and a space, unless an image comes first.
CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{{ 'Assistant:' if add_generation_prompt else '' }}"
)
KINDS = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
}
both = pytest.mark.parametrize("kind", KINDS)


def tokenizer():
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["User: Assistant: what colour is it? red circle"] * 4, 300),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
        additional_special_tokens=WORDS,
    )
    words.chat_template = None
    return words


def save_stock(folder, kind, tied=False, dtype=torch.float32):
    """A checkpoint as transformers itself writes it."""
    torch.manual_seed(0)
    words = tokenizer()
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    text = {
        **shape,
        "num_key_value_heads": 2,
        "vocab_size": len(words),
        "tie_word_embeddings": tied,
        "max_position_embeddings": 512,
        "rope_theta": 50000.0,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    config_class, model_class, images = KINDS[kind]
    config = config_class(
        text_config=LlamaConfig(**text).to_dict(),
        vision_config={**shape, "image_size": TILE, "patch_size": PATCH},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
    )
    model_class(config).to(dtype).save_pretrained(folder)
    seen = images(size={"longest_edge": LONGEST}, max_image_size={"longest_edge": TILE})
    seen.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    place = folder / "processor_config.json"
    told = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps({**told, "image_seq_len": 4}))
    return folder


@pytest.fixture(scope="module")
def stocks(tmp_path_factory):
    return {kind: save_stock(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def image(width, height, seed=0):
    """Noise in broad strokes, so that filters matter."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)


TALKS = [
    [image(50, 20), "what colour is it?", image(8, 8, 1), "red?"],
    [image(19, 40, 2), "it"],
]


def sample(parts):
    return Sample((user(*(p if isinstance(p, str) else Image(p) for p in parts)),))


def told(parts):
    content = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts
    ]
    return [{"role": "user", "content": content}]


def asked_of_theirs(folder, talks, side="left"):
    """transformers' own inputs for several conversations, padded."""
    stock = reader(folder)
    stock.tokenizer.padding_side = side
    texts = [stock.apply_chat_template(told(parts), add_generation_prompt=True) for parts in talks]
    images = [[p for p in parts if not isinstance(p, str)] for parts in talks]
    return stock(
        text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt"
    )


@both
def test_inputs_are_the_stock_processors(stocks, kind):
    """Ids and pixels of images of all shapes, and of ten real ones where they are."""
    model, processor = load(stocks[kind])
    sizes = [(32, 32), (64, 64), (7, 90), (90, 7), (33, 31), (64, 40), (1, 1), (128, 300)]
    made = [image(*size, seed) for seed, size in enumerate(sizes)]
    for shown in [*made, *ten_images()]:
        parts = [shown, "what?"]
        theirs = asked_of_theirs(stocks[kind], [parts])
        ((ours, _),) = processor.prompts([sample(parts)])
        assert ours.input_ids.tolist() == theirs["input_ids"][0].tolist()
        x = torch.from_numpy(ours.image_patches).unflatten(1, (3, -1))
        x = x * model.vision.scale + model.vision.offset
        side = TILE // PATCH
        x = x.view(-1, side, side, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(-1, 3, TILE, TILE)
        torch.testing.assert_close(x, theirs["pixel_values"][0], atol=1e-6, rtol=0)


@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_gradients_are_theirs(stocks, kind, side):
    """Two conversations of several images in tiles, padded there, packed here."""
    model, processor = load(stocks[kind])
    theirs = AutoModelForImageTextToText.from_pretrained(stocks[kind])
    inputs = asked_of_theirs(stocks[kind], TALKS, side)
    given = theirs(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]
    prompts = [encoded for encoded, _ in processor.prompts([sample(t) for t in TALKS])]
    batch = pack([prompts])
    ours = model.logits(model(batch))[0]
    torch.testing.assert_close(ours, given, atol=1e-5, rtol=0)

    targets = torch.arange(len(ours)) * 7 % 290
    F.cross_entropy(given, targets).backward()
    F.cross_entropy(ours, targets).backward()
    named = dict(theirs.named_parameters())
    compared = 0
    for name, value in tensors(model, 0).items():
        if isinstance(value, torch.nn.Parameter):
            torch.testing.assert_close(value.grad, named[name].grad, atol=1e-4, rtol=0, msg=name)
            compared += 1
    # The tables of state_dict() are copies without gradients: by module.
    for mine, other in (
        (model.language.base_model, theirs.model.text_model),
        (model.vision.model, theirs.model.vision_model),
    ):
        others = dict(other.named_parameters())
        for name, value in mine.named_parameters():
            torch.testing.assert_close(value.grad, others[name].grad, atol=1e-4, rtol=0, msg=name)
            compared += 1
    assert compared >= len(named)


@torch.no_grad()
@both
def test_greedy_tokens_are_theirs(stocks, kind):
    model, processor = load(stocks[kind])
    theirs = AutoModelForImageTextToText.from_pretrained(stocks[kind])
    inputs = asked_of_theirs(stocks[kind], TALKS)
    image = model.image_token
    whole = theirs.generate(
        **inputs, do_sample=False, max_new_tokens=8, suppress_tokens=[image], pad_token_id=0
    )
    expected = []
    for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in processor.template.stop]
        expected.append(" ".join(map(str, row[: ends[0]] if ends else row)))
    said = {0: [], 1: []}
    processor.template.decode = lambda ids: " ".join(map(str, ids))
    for number, piece in Generator(model, processor)(
        [sample(t) for t in TALKS], SamplingParams(max_tokens=8)
    ):
        said[number].append(piece.text)
    assert ["".join(said[n]) for n in (0, 1)] == expected


def held(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@both
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stock_checkpoint_comes_out_byte_for_byte(kind, tied, dtype, tmp_path):
    stock = save_stock(tmp_path / "stock", kind, tied, dtype)
    line = export(stock, tmp_path / "out", "hf")
    assert "logits apart by at most" in line
    before, after = held(stock), held(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)), name
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(model) is KINDS[kind][1]
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))


@both
def test_processor_files_are_read_the_same_by_both_versions(stocks, kind, tmp_path):
    """Version 4 reads flat files alone, version 5 these too; both must find what was there."""
    out = tmp_path / "out"
    export(stocks[kind], out, "hf")
    flat = json.loads((out / "preprocessor_config.json").read_text())
    assert flat["size"] == {"longest_edge": LONGEST}
    assert flat["max_image_size"] == {"longest_edge": TILE}
    assert flat["image_processor_type"].removesuffix("ImageProcessor").lower() == kind
    assert "image_processor" not in json.loads((out / "processor_config.json").read_text())
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    before, after = (AutoImageProcessor.from_pretrained(f) for f in (stocks[kind], out))
    assert type(before) is type(after)
    for name in ("size", "max_image_size", "do_image_splitting", "resample", "image_mean"):
        assert getattr(before, name) == getattr(after, name)
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == 50000.0
    mine, theirs = (asked_of_theirs(f, TALKS) for f in (out, stocks[kind]))
    for name, value in theirs.items():
        assert torch.equal(value, mine[name])


@pytest.fixture
def words(tmp_path):
    """A folder of a tiny language model with a chat template of its own."""
    folder = tmp_path / "words"
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle"] * 4, 290), eos_token="</s>"
    )
    tokens.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{{ 'assistant:' if add_generation_prompt else '' }}"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(
        **shape, num_attention_heads=2, vocab_size=len(tokens), max_position_embeddings=256
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


VISION = ViTConfig(image_size=TILE, patch_size=PATCH, width=16, layers=2, heads=2)


def build(words, vision=VISION, **settings):
    chosen = {
        "projector": PixelShuffleConfig(2),
        "image_processing": SplitConfig(longest_edge=LONGEST),
        **settings,
    }
    config = MLLMConfig(language_model=str(words), lora=None, system="Be brief.", **chosen)
    model, processor = hub.build(config, ViT(vision))
    return model.eval(), processor, config


def test_a_model_of_our_own_parts_is_exported_and_comes_back(words, tmp_path):
    model, processor, config = build(words)
    hub.save(tmp_path / "run", model, processor, config)
    export(tmp_path / "run", tmp_path / "out", "hf")
    again, other = load(tmp_path / "out")
    asked = Sample((user(Image(TALKS[0][0]), "what?"), assistant("red")))
    with torch.no_grad():
        batch = pack([[processor.encode(asked)]])
        # Its chat template says the system's words by itself now.
        back = pack([[other.encode(asked)]])
        assert torch.equal(batch.input_ids, back.input_ids)
        assert torch.equal(batch.labels, back.labels)
        expected = model.logits(model(batch))
        torch.testing.assert_close(
            again.logits(again(back))[..., : expected.shape[-1]], expected, atol=1e-5, rtol=0
        )


def test_what_cannot_be_said_is_named(words, tmp_path):
    model, processor, config = build(words, projector=MLPConfig(merge=2))
    hub.save(tmp_path / "run", model, processor, config)
    with pytest.raises(ConfigError, match="in the way of Idefics3: the projector MLPConfig"):
        export(tmp_path / "run", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()
    model, processor, _ = build(
        words, image_processing=SplitConfig(longest_edge=LONGEST, max_image_size=16)
    )
    assert any("tiles of 16 pixels" in line for line in IDEFICS3.obstacles(model, processor))
    vision = ViTConfig(**{**vars(VISION), "image_size": 24})
    model, processor, _ = build(words, vision)
    assert any("2 does not divide" in line for line in SMOLVLM.obstacles(model, processor))
    shutil.rmtree(tmp_path / "run")


def test_positions_are_kept_where_their_encoder_keeps_them():
    """Against the class itself, whose roundings it must know."""
    for side in range(2, 41):
        config = Idefics3Config(
            vision_config={"hidden_size": 1, "image_size": side, "patch_size": 1}
        ).vision_config
        embeddings = Idefics3VisionEmbeddings(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight.copy_(torch.arange(side**2.0)[:, None])
            rows = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side).bool())
        assert positions_kept(side) == torch.equal(rows[0, :, 0], torch.arange(side**2.0))
