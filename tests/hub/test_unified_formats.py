"""Unified models as Chameleon's and Emu3's classes of transformers, and back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoProcessor,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    Emu3ForConditionalGeneration,
)

from chiasm.core.batch import ImageBatch, pack
from chiasm.core.errors import CheckpointError, ChiasmError, ConfigError, NotGenerativeError
from chiasm.core.sample import Image, Sample, user
from chiasm.data.text import train_bpe
from chiasm.hub import unified
from chiasm.hub.export import export
from chiasm.hub.formats.chameleon import CHAMELEON, code_name, code_of
from chiasm.hub.formats.codebook import codebook
from chiasm.hub.formats.emu3 import EMU3
from chiasm.hub.load import load
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import (
    AutoencoderConfig,
    FSQConfig,
    LFQConfig,
    ResidualVQConfig,
    StockNetworks,
    TokenizerViT,
    UnifiedConfig,
    VQConfig,
)
from chiasm.unified.quantizers import FSQ, LFQ, build_quantizer
from own_parts import SignConfig

TEXTS = ["what is this? a red circle", "draw a blue square"]
SIZE = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 48, "rope_theta": 1000.0}
TOKENIZER = AutoencoderConfig(
    FSQConfig((8, 5, 3)), 16, multipliers=(1, 1, 1), res_blocks=1, decoder_channels=64
)
EMU3_NETWORKS = StockNetworks(
    "emu3",
    {
        "codebook_size": 20,
        "embed_dim": 4,
        "latent_channels": 4,
        "temporal_downsample_factor": 2,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
        "hidden_size": 32,
    },
)


def shaken(module):
    """Weights, norms and codebook away from where they start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.add_(0.2 * torch.randn_like(value))
    return module.eval()


def build(tokenizer=TOKENIZER, **changes):
    torch.manual_seed(0)
    autoencoder = shaken(Autoencoder(tokenizer))
    config = UnifiedConfig(**{**SIZE, "kv_heads": 2, **changes})
    model, processor = unified.build(config, train_bpe(TEXTS, 300), autoencoder)
    return shaken(model), processor


def image(seed=0, size=(20, 24)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def asked(image):
    return Sample((user(Image(image), "what is this?"),))


def logits(model, processor, image):
    """[T V] of a question about an image, and its ids [T]."""
    encoded = processor.prompts([asked(image)])[0][0]
    batch = pack([[encoded]])
    with torch.no_grad():
        return model.logits(model(batch))[0], batch.input_ids[0]


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """Our model, its processor, and its export."""
    made = build()
    folder = tmp_path_factory.mktemp("chameleon") / "out"
    CHAMELEON.export(*made, folder)
    return *made, folder


@pytest.mark.parametrize("changes", [{}, {"post_norm": True, "kv_heads": 4}, {"tied": True}])
def test_chameleons_class_computes_the_same_from_pixels(tmp_path, changes):
    """Its own processor makes the ids and pixels."""
    model, processor = build(**changes)
    CHAMELEON.export(model, processor, tmp_path)
    theirs, loading = ChameleonForConditionalGeneration.from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    stock = ChameleonProcessor.from_pretrained(tmp_path, local_files_only=True)
    found = []
    for seed in range(2):
        expected, ids = logits(model, processor, image(seed))
        content = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
        turns = [{"role": "user", "content": content}]
        # This processor's class takes no template of its own; its tokenizer's is the same.
        template = stock.tokenizer.chat_template
        text = stock.apply_chat_template(turns, chat_template=template, tokenize=False)
        inputs = stock(images=image(seed), text=text, return_tensors="pt")
        with torch.no_grad():
            codes = theirs.model.get_image_tokens(inputs["pixel_values"])
            hidden = theirs.eval().model(**inputs).last_hidden_state
            found.append(theirs.lm_head(hidden)[0, :, : model.vocabulary.size])
        words = inputs["input_ids"][0]
        assert torch.equal(codes[0].long(), ids[words == theirs.config.image_token_id])
        assert torch.equal(torch.where(words == theirs.config.image_token_id, ids, words), ids)
        torch.testing.assert_close(found[-1], expected, atol=1e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("changes", [{"kv_heads": 4}, {"tied": True}])
def test_emu3s_class_computes_the_same_from_pixels(tmp_path, changes):
    """The row ends that it adds are hidden by the mask, as its docstring here says."""
    model, processor = build(qk_norm=False, **changes)
    EMU3.export(model, processor, tmp_path)
    theirs, loading = Emu3ForConditionalGeneration.from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    rows, columns = processor.codec.grid
    found = []
    for seed in range(2):
        expected, ids = logits(model, processor, image(seed))
        first = int((ids == model.vocabulary.begin_image).nonzero()) + 1
        place = theirs.config.image_token_id
        row = [place] * (columns + 1)
        words = torch.tensor([[*ids[:first], *row * rows, *ids[first + rows * columns :]]])
        mask = torch.ones_like(words)
        mask[0, first + columns : first + rows * (columns + 1) : columns + 1] = 0
        pixels = torch.from_numpy(np.asarray(image(seed).resize((16, 16), 3), np.float32))
        pixels = pixels.permute(2, 0, 1)[None] / 127.5 - 1
        sizes = torch.tensor([[16, 16]])
        with torch.no_grad():
            theirs.eval()
            codes = theirs.model.get_image_tokens(pixels, sizes).view(rows, columns + 1)
            hidden = theirs.model(
                input_ids=words,
                pixel_values=pixels,
                image_sizes=sizes,
                attention_mask=mask,
                position_ids=mask.cumsum(1) - 1,
            ).last_hidden_state
        assert torch.equal(codes[:, :-1].flatten().long(), ids[first : first + rows * columns])
        kept = hidden[mask.bool()]
        found.append(theirs.lm_head(kept)[:, : model.vocabulary.size].detach())
        torch.testing.assert_close(found[-1], expected, atol=1e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(20, 24), (5, 90), (200, 7), (16, 16)])
def test_auto_processor_prompts_an_emu3_with_row_ends(tmp_path, size):
    """From an image of any shape to the same logits through transformers alone."""
    tokenizer = replace(TOKENIZER, image_size=16, multipliers=(1, 1, 1, 1))
    model, processor = build(tokenizer, qk_norm=False, row_ends=True)
    EMU3.export(model, processor, tmp_path)
    assert "AutoProcessor makes the same prompts" in EMU3.verify(model, processor, tmp_path)
    assert (tmp_path / "preprocessor_config.json").exists()
    reader = AutoProcessor.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "what is this?"}]
    inputs = reader(
        images=[image(size=size)],
        text=reader.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        ),
        return_tensors="pt",
    )
    theirs = Emu3ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(**inputs).logits[0]
    expected, ids = logits(model, processor, image(size=size))
    assert inputs["pixel_values"].shape[-2:] == (16, 16)
    assert len(ids) == len(found)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=1e-4, rtol=1e-4)


def test_an_emu3_that_its_processor_cannot_prompt_has_none(tmp_path):
    model, processor = build(qk_norm=False)
    EMU3.export(model, processor, tmp_path)
    said = EMU3.verify(model, processor, tmp_path)
    assert "no processor, as Emu3Processor cannot say no row ends" in said
    assert "4 pixels a code" in said
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_an_emu3_with_a_processor_needs_our_files_to_be_read_again(tmp_path):
    tokenizer = replace(TOKENIZER, image_size=16, multipliers=(1, 1, 1, 1))
    model, processor = build(tokenizer, qk_norm=False, row_ends=True)
    EMU3.export(model, processor, tmp_path)
    again, reader = EMU3.load(tmp_path)
    expected, ids = logits(model, processor, image())
    found, others = logits(again, reader, image())
    assert torch.equal(ids, others)
    torch.testing.assert_close(found, expected)
    shutil.rmtree(tmp_path / "chiasm")
    with pytest.raises(CheckpointError, match="without its folder 'chiasm/'"):
        EMU3.load(tmp_path)


def test_emu3s_own_networks_go_in_whole_and_draw(tmp_path):
    """A tokenizer of its networks: pixels from the class are ours."""
    tokenizer = AutoencoderConfig(VQConfig(20, 4), 16, hf_networks=EMU3_NETWORKS)
    model, processor = build(tokenizer, qk_norm=False)
    EMU3.export(model, processor, tmp_path)
    said = EMU3.verify(model, processor, tmp_path)
    assert "100.0% of the codes equal" in said
    theirs = Emu3ForConditionalGeneration.from_pretrained(tmp_path, local_files_only=True).eval()
    codes = torch.randint(0, 20, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = theirs.model.vqmodel.decode(codes).clamp(-1, 1)
        torch.testing.assert_close(
            drawn, processor.codec.autoencoder.decode(codes), atol=1e-5, rtol=0
        )
    assert drawn.std() > 0.01


def test_published_networks_can_be_trained():
    """Chameleon's with our decoder."""
    chameleon = StockNetworks(
        "chameleon",
        {
            "latent_channels": 6,
            "base_channels": 32,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
        },
    )
    pixels = torch.rand(2 * 64, 12)
    batch = ImageBatch(pixels, torch.tensor([[8, 8]] * 2))
    for networks, width in ((EMU3_NETWORKS, 4), (chameleon, 5)):
        config = AutoencoderConfig(
            FSQConfig((3,) * width), 16, hf_networks=networks, decoder_channels=64
        )
        made = Autoencoder(config).train()
        made.loss(batch).sum.backward()
        learnt = [p.grad is not None for p in made.parameters()]
        assert all(learnt)


@pytest.mark.parametrize("quantizer", [VQConfig(30, 6), LFQConfig(5), FSQConfig((2, 4, 7))])
def test_every_codebook_gives_equal_codes(tmp_path, quantizer):
    model, processor = build(replace(TOKENIZER, quantizer=quantizer, res_blocks=0))
    CHAMELEON.export(model, processor, tmp_path)
    assert "100.0% of the codes equal" in CHAMELEON.verify(model, processor, tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 17), min_size=1, max_size=4), st.integers(0, 1000))
def test_fsq_is_a_nearest_neighbour(levels, seed):
    """Also far out, where tanh is flat."""
    quantizer = FSQ(FSQConfig(tuple(levels[:2] if np.prod(levels) > 4000 else levels)))
    torch.manual_seed(seed)
    z = torch.randn(200, quantizer.width) * torch.tensor([0.3, 1.0, 3.0, 10.0]).repeat(50)[:, None]
    points = codebook(quantizer).double()
    nearest = torch.cdist(z.double(), points).argmin(1)
    codes = quantizer(z.T[None, :, :, None]).codes.flatten()
    # A tie in the middle of two points may fall to either side in single precision.
    differ = nearest != codes
    apart = torch.cdist(z.double(), points)
    gap = apart.gather(1, codes[:, None]) - apart.gather(1, nearest[:, None])
    assert (gap[differ] < 1e-4).all()
    assert differ.float().mean() < 0.02


def test_lfq_is_a_nearest_neighbour():
    quantizer, z = LFQ(LFQConfig(6)).eval(), torch.randn(500, 6)
    nearest = torch.cdist(z, codebook(quantizer)).argmin(1)
    assert torch.equal(nearest, quantizer(z.T[None, :, :, None]).codes.flatten())
    assert codebook(build_quantizer(ResidualVQConfig(8, 4, 2))) is None
    assert codebook(build_quantizer(SignConfig(3))) is None  # of one's own


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"qk_norm": "rms"}, "rms"),
        ({"qk_norm": False}, "always normalises"),
        ({"logit_softcap": 3.0}, "logit_softcap"),
        ({"attention_softcap": 3.0}, "attention_softcap"),
        ({"image_attention": "bidirectional"}, "bidirectional"),
        ({"rope": "2d"}, "rope '2d'"),
        ({"mup_base_width": 16}, "mup_base_width"),
        ({"tokenizer": replace(TOKENIZER, quantizer=ResidualVQConfig(16, 4, 2))}, "ResidualVQ"),
        ({"tokenizer": replace(TOKENIZER, vit=TokenizerViT(4, 32, 1, 2))}, "vit"),
        ({"tokenizer": AutoencoderConfig(VQConfig(20, 4), 16, hf_networks=EMU3_NETWORKS)}, "emu3"),
    ],
)
def test_what_chameleons_class_cannot_say_is_named(changes, named):
    (found,) = CHAMELEON.obstacles(*build(**changes))
    assert named in found


def test_what_emu3s_class_cannot_say_is_named():
    assert [o.split()[0] for o in EMU3.obstacles(*build(post_norm=True))] == [
        "qk_norm",
        "post_norm",
    ]
    assert not EMU3.obstacles(*build(qk_norm=False))


def test_the_command_chooses_the_class_or_refuses(chameleon, tmp_path):
    model, processor, _ = chameleon
    unified.save(tmp_path / "run", model, processor)
    assert "ChameleonForConditionalGeneration" in export(tmp_path / "run", tmp_path / "a", "hf")
    with pytest.raises(ConfigError, match="no gguf layout"):
        export(tmp_path / "run", tmp_path / "b", "gguf")
    made = build(qk_norm=False)
    unified.save(tmp_path / "plain", *made)
    assert "Emu3ForConditionalGeneration" in export(tmp_path / "plain", tmp_path / "c", "hf")
    unified.save(tmp_path / "capped", *build(logit_softcap=3.0))
    with pytest.raises(ConfigError, match="in the way of Chameleon: logit_softcap"):
        export(tmp_path / "capped", tmp_path / "d", "hf")


def test_an_export_comes_back_as_it_was(chameleon, tmp_path):
    """And it is the class's file that is read."""
    model, processor, folder = chameleon
    again, words = load(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    expected, ids = logits(model, processor, image())
    found, same = logits(again, words, image())
    assert torch.equal(ids, same)
    torch.testing.assert_close(found, expected)
    drawn = words.codec.decode(ids[(ids >= model.vocabulary.text)])
    assert drawn.size == (16, 16)
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    with pytest.raises(ChiasmError, match="no such file"):
        load(tmp_path / "cut")


def published(folder, target):
    """The export as somebody else would have published it: nothing of ours beside."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "chiasm")
    return target


def test_a_published_chameleon_is_read(chameleon, tmp_path):
    model, processor, folder = chameleon
    theirs = published(folder, tmp_path / "p")
    found, words = load(theirs)
    expected, _ = logits(model, processor, image())
    got, same = logits(found, words, image())
    mine, read = (p.codec.codes([image()])[0] for p in (processor, words))
    np.testing.assert_array_equal(read, mine)
    shared = model.vocabulary.text
    torch.testing.assert_close(got[:, :shared], expected[:, :shared], atol=1e-4, rtol=0)
    codes = model.vocabulary.codes
    torch.testing.assert_close(got[:, -codes:], expected[:, -codes:], atol=1e-4, rtol=0)
    with pytest.raises(NotGenerativeError, match="without a decoder"):
        words.codec.decode(same[same >= found.vocabulary.text])
    unified.save(tmp_path / "run", found, words)  # it is a model like others from here on
    again, more = load(tmp_path / "run")
    torch.testing.assert_close(logits(again, more, image())[0], got)


def test_codes_numbered_in_the_middle_are_read(chameleon, tmp_path):
    """As in Meta's checkpoint, where codes come before most words."""
    from safetensors.torch import load_file, save_file

    model, processor, folder = chameleon
    theirs = published(folder, tmp_path / "p")
    first, codes = model.vocabulary.text, model.vocabulary.codes
    size = AutoConfig.from_pretrained(theirs).vocab_size
    order = [
        *range(10),
        *range(first, first + codes),
        *range(10, first),
        *range(first + codes, size),
    ]
    new = {old: place for place, old in enumerate(order)}
    state = load_file(theirs / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][order]
    save_file(state, theirs / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((theirs / "config.json").read_text())
    config["vocabulary_map"] = {k: new[v] for k, v in config["vocabulary_map"].items()}
    (theirs / "config.json").write_text(json.dumps(config))
    words = json.loads((theirs / "tokenizer.json").read_text())
    words["model"]["vocab"] = {k: new[v] for k, v in words["model"]["vocab"].items()}
    for token in words["added_tokens"]:
        token["id"] = new[token["id"]]
    words["added_tokens"].sort(key=lambda t: t["id"])
    (theirs / "tokenizer.json").write_text(json.dumps(words))
    found, reader = load(theirs)
    expected, _ = logits(model, processor, image())
    got, _ = logits(found, reader, image())
    torch.testing.assert_close(got[:, :first], expected[:, :first], atol=1e-4, rtol=0)


def test_a_published_emu3_is_read_with_its_decoder(tmp_path):
    tokenizer = AutoencoderConfig(VQConfig(20, 4), 16, hf_networks=EMU3_NETWORKS)
    model, processor = build(tokenizer, qk_norm=False)
    EMU3.export(model, processor, tmp_path / "out")
    theirs = published(tmp_path / "out", tmp_path / "p")
    (theirs / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    found, words = load(theirs)
    expected, ids = logits(model, processor, image())
    got, same = logits(found, words, image())
    shared = model.vocabulary.text
    torch.testing.assert_close(got[:, :shared], expected[:, :shared], atol=1e-4, rtol=0)
    mine, drawn = (
        np.asarray(p.codec.decode(i[i >= m.vocabulary.text]), np.int16)
        for m, p, i in ((model, processor, ids), (found, words, same))
    )
    assert np.abs(mine - drawn).max() <= 1
    config = json.loads((theirs / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-6
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rms_norm_eps 1e-06"):
        load(theirs)


def test_names_of_codes():
    assert code_name(8191) == "IMGIMGIBJBZ"
    assert [code_of(code_name(n)) for n in (0, 7, 8191)] == [0, 7, 8191]
    assert code_of("<s>") is None
    assert code_of("IMGIMGZ") is None
