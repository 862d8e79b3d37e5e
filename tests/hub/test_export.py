"""chiasm export of models that were composed here."""

import json

import pytest
import torch
import transformers as hf

from chiasm.cli import main
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.sample import Image, Sample, user
from chiasm.hub import mllm as hub
from chiasm.hub.export import export
from chiasm.hub.formats import FORMATS
from chiasm.hub.load import load
from chiasm.mllm.config import (
    AnyResConfig,
    DeepStackConfig,
    LinearConfig,
    LoRAConfig,
    MLLMConfig,
    MLPConfig,
    NativeConfig,
    PadConfig,
)
from chiasm.vision.config import TowerOptions, ViTConfig
from chiasm.vision.pretrained import load_encoder
from chiasm.vision.vit import ViT
from stock_toys import PATCH, SIDE, gemma, llama, noise, tower, words

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PLAIN = MLPConfig(merge=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a CLIP, a SigLIP, a Llama and a Gemma."""
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("clip", "siglip", "llama", "gemma")}
    hf.CLIPVisionModel(tower("clip")).save_pretrained(folders["clip"])
    hf.SiglipVisionModel(tower("siglip")).save_pretrained(folders["siglip"])
    tokenizer = words()
    tokenizer.chat_template = CHATML
    config = llama(tokenizer, rope_theta=50_000.0)
    hf.LlamaForCausalLM(config).save_pretrained(folders["llama"])
    tokenizer.save_pretrained(folders["llama"])
    bare = words(begins=False)
    hf.GemmaForCausalLM(gemma(bare, "gemma")).save_pretrained(folders["gemma"])
    bare.save_pretrained(folders["gemma"])
    return folders


def built(parts, encoder="clip", language="llama", **settings):
    settings = {"projector": PLAIN, "lora": None, **settings}
    config = MLLMConfig(
        encoder=str(parts[encoder]), language_model=str(parts[language]), **settings
    )
    torch.manual_seed(0)
    return config, *hub.build(config, load_encoder(str(parts[encoder]), config.vision))


def saved(parts, folder, **settings):
    config, model, processor = built(parts, **settings)
    hub.save(folder, model, processor, config)
    return folder


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "llava"),
        ({"encoder": "siglip", "image_processing": PadConfig(), "system": "be brief"}, "llava"),
        ({"vision": TowerOptions(layer=(1, -2), class_token=True), "system": ""}, "llava"),
        ({"image_processing": AnyResConfig()}, "llava_next"),
        ({"chat_template": "vicuna"}, "llava"),
        (
            {
                "encoder": "siglip",
                "language": "gemma",
                "projector": LinearConfig(zero_init=True),
                "chat_template": "paligemma",
                "attention": "prefix",
                "vision": TowerOptions(layer=-1, norm=True),
            },
            "paligemma",
        ),
    ],
    ids=["clip", "siglip", "class-token", "anyres", "vicuna", "paligemma"],
)
def test_what_was_composed_is_read_by_transformers(settings, kind, parts, tmp_path, capsys):
    run = saved(parts, tmp_path / "run", **settings)
    out = tmp_path / "out"
    main(["export", str(run), "--to", "hf", str(out)])
    assert "read back with transformers: the same" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == kind
    if settings.get("language") != "gemma":
        assert config["text_config"]["rope_theta"] == 50_000.0
    ours, theirs = (load(folder) for folder in (run, out))
    sample = Sample((user(Image(noise(50, 30)), "what?"),))
    first, second = (processor.prompts([sample])[0][0] for _, processor in (ours, theirs))
    assert first.input_ids.tolist() == second.input_ids.tolist()


class Resizing:
    """Stands for torchvision's backend: pixels apart by so many of 255 levels from Pillow's."""

    def __init__(self, reader, levels):
        self.reader, self.levels = reader, levels

    def __getattr__(self, name):
        return getattr(self.reader, name)

    def __call__(self, **given):
        made = self.reader(**given)
        apart = self.levels / 255 / max(self.reader.image_processor.image_std)
        random = torch.Generator().manual_seed(0)
        noise = torch.rand(made["pixel_values"].shape, generator=random) < 0.5
        made["pixel_values"] = made["pixel_values"] + apart * noise
        return made


@pytest.mark.parametrize("images", [PadConfig(), AnyResConfig()])
def test_pixels_of_another_library_are_no_fault_of_an_export(images, parts, tmp_path, monkeypatch):
    run = saved(parts, tmp_path / "run", images=images)
    pillow = hf.AutoProcessor.from_pretrained
    levels = 1

    def load_reader(folder, backend="torchvision", **more):
        made = pillow(folder, backend="pil", **more)
        return made if backend == "pil" else Resizing(made, levels)

    monkeypatch.setattr(hf.AutoProcessor, "from_pretrained", load_reader)
    assert "the same" in export(run, tmp_path / "out", "hf")
    levels = 4
    with pytest.raises(CheckpointError, match=r"pixels up to 4\.0 of 255 levels from Pillow's"):
        export(run, tmp_path / "other", "hf")


def test_our_own_encoder_as_siglip(parts, tmp_path):
    config = MLLMConfig(
        language_model=str(parts["gemma"]),
        projector=LinearConfig(),
        lora=None,
        chat_template="paligemma",
        attention="prefix",
    )
    vision = ViT(ViTConfig(image_size=SIDE, patch_size=PATCH, width=16, layers=2, heads=2))
    model, processor = hub.build(config, vision)
    hub.save(tmp_path / "run", model, processor, config)
    assert export(tmp_path / "run", tmp_path / "out", "hf").startswith("PaliGemma: read back")


def obstacles(model, processor, name):
    layout = next(layout for layout in FORMATS.values() if layout.name == name)
    return "; ".join(layout.obstacles(model, processor))


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"projector": MLPConfig(merge=2)}, "LLaVA", "the projector MLPConfig"),
        ({"projector": LinearConfig()}, "LLaVA", "the projector LinearConfig"),
        ({"projector": MLPConfig(merge=1, hidden=7)}, "LLaVA", "hidden width 7"),
        (
            {
                "projector": DeepStackConfig(2, MLPConfig(merge=1)),
                "vision": TowerOptions(layer=(1, 2)),
            },
            "LLaVA",
            "the projector DeepStackConfig",
        ),
        ({"image_processing": NativeConfig(20)}, "LLaVA", "images shown by NativeConfig"),
        ({"image_processing": AnyResConfig()}, "LLaVA", "images shown by AnyResConfig"),
        ({}, "LLaVA-NeXT", "images shown by ResizeConfig"),
        (
            {"image_processing": AnyResConfig(), "vision": TowerOptions(class_token=True)},
            "LLaVA-NeXT",
            "class tokens among",
        ),
        ({"attention": "prefix"}, "LLaVA", "prefix-LM attention"),
        ({"vision": TowerOptions(layer=-1, norm=True)}, "LLaVA", "the encoder's last norm"),
        ({"vision": TowerOptions(image_size=42)}, "LLaVA", "images of 42 pixels"),
        ({"lora": LoRAConfig(merged=False)}, "LLaVA", "LoRA adapters apart"),
        ({}, "PaliGemma", "the family clip_vision_model"),
        ({"encoder": "siglip"}, "PaliGemma", "without the encoder's last norm"),
        (
            {"encoder": "siglip", "vision": TowerOptions(layer=(1, -1), norm=True)},
            "PaliGemma",
            "features of the encoder's layers (1, 3)",
        ),
        ({"encoder": "siglip"}, "PaliGemma", "a language model 'llama'"),
        ({"encoder": "siglip"}, "PaliGemma", "causal attention"),
        ({"encoder": "siglip"}, "PaliGemma", "another chat template"),
    ],
)
def test_what_is_in_the_way_is_named(settings, name, words, parts):
    _, model, processor = built(parts, **settings)
    assert words in obstacles(model, processor, name)


@pytest.mark.parametrize("name", ["LLaVA", "LLaVA-NeXT", "PaliGemma"])
def test_two_encoders_have_no_place(name, parts):
    both = f"{parts['clip']}+{parts['siglip']}"
    config = MLLMConfig(language_model=str(parts["llama"]), projector=PLAIN, lora=None)
    model, processor = hub.build(config, load_encoder(both, TowerOptions()))
    assert "two encoders fused" in obstacles(model, processor, name)


def test_the_command_refuses_in_a_line(parts, tmp_path, capsys):
    run = saved(parts, tmp_path / "run", projector=MLPConfig(merge=2))
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "in the way of" in said
    assert "MLPConfig(layers=2, hidden=0, merge=2)" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no published layout"):
        export(run, tmp_path / "out", "hf")


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export(tmp_path, tmp_path, "hf")
