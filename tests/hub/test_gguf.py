"""LLaVA models as GGUF: tensor by tensor with its library, and run by llama.cpp where it is."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from chiasm.core.batch import pack
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.sample import Image, Sample, user
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.hub.export import export
from chiasm.hub.formats.gguf import GGUFFormat
from chiasm.hub.formats.gguf_language import interleaved
from chiasm.mllm.config import MLLMConfig, MLPConfig, PadConfig, ResizeConfig
from chiasm.vision.config import TowerOptions
from chiasm.vision.pretrained import load_encoder

gguf = pytest.importorskip("gguf")

SIDE, PATCH = 32, 8
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of a tiny encoder or language model."""
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["user assistant what colour is it? red circle"] * 4, 300),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = CHAT
    decoder = {**SHAPE, "num_key_value_heads": 2, "vocab_size": len(words)}
    decoder |= {"max_position_embeddings": 256, "rope_theta": 20000.0}
    tower = {**SHAPE, "image_size": SIDE, "patch_size": PATCH}
    made = {
        "llama": LlamaForCausalLM(LlamaConfig(**decoder)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**decoder, tie_word_embeddings=True)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**decoder, head_dim=32)),
        "clip": CLIPVisionModel(CLIPVisionConfig(**tower)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**tower)),
    }
    places = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, model in made.items():
        for parameter in model.parameters():  # biases too, so that a lost one shows
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 0.5, 0.3)
        model.save_pretrained(places[name])
        if name in ("llama", "qwen2", "qwen3"):
            words.save_pretrained(places[name])
    return places


def build(folders, language="llama", encoder="siglip", layer=-2, norm=False, **settings):
    torch.manual_seed(1)
    chosen = {"projector": MLPConfig(merge=1), "image_processing": PadConfig(), **settings}
    config = MLLMConfig(
        language_model=str(folders[language]), lora=None, vision=TowerOptions(layer, norm), **chosen
    )
    vision = load_encoder(str(folders[encoder]), config.vision)
    model, processor = hub.build(config, vision)
    return model.eval(), processor, config


def saved(folders, place, **settings):
    model, processor, config = build(folders, **settings)
    hub.save(place / "run", model, processor, config)
    return model, processor, place / "run"


@pytest.mark.parametrize(
    ("language", "encoder", "norm"),
    [("llama", "clip", False), ("qwen2", "siglip", False), ("qwen3", "siglip", True)],
)
def test_written_and_read_back(folders, language, encoder, norm, tmp_path):
    layer = -1 if norm else -2
    _, processor, run = saved(
        folders, tmp_path, language=language, encoder=encoder, layer=layer, norm=norm
    )
    line = export(run, tmp_path / "out", "gguf")
    assert "read back with gguf" in line
    told = gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf")
    names = {tensor.name for tensor in told.tensors}
    assert ("v.post_ln.weight" in names) is norm
    assert ("v.class_embd" in names) is (encoder == "clip")
    field = told.get_field("clip.vision.feature_layer")
    assert field.contents() == [3 if norm else 2]
    words = gguf.GGUFReader(tmp_path / "out" / "model.gguf").get_field("tokenizer.ggml.tokens")
    tokenizer = processor.template.tokenizer
    assert words.contents()[: len(tokenizer)] == [
        tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))
    ]


def test_a_changed_tensor_is_noticed(folders, tmp_path):
    model, processor, _ = build(folders)
    layout = GGUFFormat()
    layout.export(model, processor, tmp_path)
    with torch.no_grad():
        model.projector.layers[1].weight[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"mm\.2\.weight is not what was written"):
        layout.verify(model, processor, tmp_path)


def test_neighbours_turn_as_halves_did():
    """Rotating neighbours of the reordered rows is reordering the rotated halves."""
    heads, size = 2, 6
    x, angles = torch.randn(heads * size), torch.randn(size // 2)

    def turned(a, b):
        return a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()

    halves = torch.cat([torch.cat(turned(*h.chunk(2))) for h in x.chunk(heads)])
    pairs = interleaved(x, heads).view(heads, -1, 2)
    neighbours = torch.stack(turned(pairs[..., 0], pairs[..., 1]), -1).flatten()
    torch.testing.assert_close(neighbours, interleaved(halves, heads))


def test_what_llama_cpp_cannot_say_is_named(folders, tmp_path):
    _, _, run = saved(folders, tmp_path, image_processing=ResizeConfig())
    with pytest.raises(ConfigError, match="in the way of GGUF: images shown by ResizeConfig"):
        export(run, tmp_path / "out", "gguf")
    model, processor, _ = build(folders, projector=MLPConfig(merge=2))
    assert any("MLPConfig" in line for line in GGUFFormat().obstacles(model, processor))


def llama_cpp_says(folder, image, words, count, forced):
    """Ids and log-probabilities of the likeliest first tokens of llama.cpp's reply. The reply
    itself is the word `forced`: of one that is the end, or half a character, it tells nothing."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    params.n_ctx, params.warmup, params.n_parallel, params.fit_params = 256, False, 1, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    said = server.handle_chat_completions(
        {
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 1,
            "temperature": 0.0,
            "logit_bias": {str(forced): 1000.0},
            "logprobs": True,
            "top_logprobs": count,
        }
    )
    said = json.loads(said) if isinstance(said, (str, bytes)) else said
    first = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {entry["id"]: entry["logprob"] for entry in first}


@torch.no_grad()
@pytest.mark.parametrize(
    ("language", "norm"), [("llama", False), ("llama", True), ("qwen2", False)]
)
def test_llama_cpp_says_the_same(folders, language, norm, tmp_path):
    pytest.importorskip("xllamacpp")
    layer = -1 if norm else -2
    model, processor, run = saved(folders, tmp_path, language=language, layer=layer, norm=norm)
    export(run, tmp_path / "out", "gguf")
    # An image of the encoder's size: llama.cpp's resizing filters are its own.
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image = PIL.Image.fromarray(pixels)
    (word,) = processor.template.tokenizer("r").input_ids
    theirs = llama_cpp_says(tmp_path / "out", image, "what colour?", 10, word)
    ((asked, _),) = processor.prompts([Sample((user(Image(image), "what colour?"),))])
    ours = model.logits(model(pack([[asked]])))[0, -1].log_softmax(-1)
    assert ours.topk(5).indices.tolist() == list(theirs)[:5]
    for token, value in theirs.items():
        assert ours[token].item() == pytest.approx(value, abs=2e-2)
