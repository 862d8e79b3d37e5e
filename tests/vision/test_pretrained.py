"""Encoders of transformers against their stock classes and processors."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from chiasm.core.config import from_dict, to_dict
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.nn.precision import LoweredWeights
from chiasm.vision import pretrained
from chiasm.vision.config import EncoderConfig, TowerOptions
from chiasm.vision.patches import fit, patchify, to_array
from chiasm.vision.pretrained import load_encoder, restore_encoder, save_encoder
from kernel_stand_ins import using, varlen

WIDTH, LAYERS, SIZE, PATCH = 16, 3, 32, 8
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SIDES = {"image_size": SIZE, "patch_size": PATCH}
ODD = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.3, 0.9]}
SQUARE = {"height": SIZE, "width": SIZE}

STOCK = {
    "clip": (
        "CLIPVisionModel",
        CLIPVisionConfig(**COMMON, **SIDES, intermediate_size=24),
        CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE),
    ),
    "siglip": (
        "SiglipVisionModel",
        SiglipVisionConfig(**COMMON, **SIDES, intermediate_size=24),
        SiglipImageProcessorPil(size=SQUARE, **ODD),
    ),
    "siglip2": (
        "Siglip2VisionModel",
        Siglip2VisionConfig(**COMMON, patch_size=PATCH, intermediate_size=24, num_patches=16),
        Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16, **ODD),
    ),
    "dinov2": (
        "Dinov2Model",
        Dinov2Config(**COMMON, **SIDES),
        BitImageProcessorPil(
            size=SQUARE,
            crop_size=SQUARE,
            image_mean=pretrained.IMAGENET[0],
            image_std=pretrained.IMAGENET[1],
        ),
    ),
    "registers": (
        "Dinov2WithRegistersModel",
        Dinov2WithRegistersConfig(**COMMON, **SIDES, num_register_tokens=4),
        BitImageProcessorPil(size=SQUARE, crop_size=SQUARE, **ODD),
    ),
    "dinov3": (
        "DINOv3ViTModel",
        DINOv3ViTConfig(**COMMON, **SIDES, intermediate_size=24, num_register_tokens=4),
        None,  # its processor needs torchvision
    ),
}
SPECIAL = {"clip": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "registers": 5, "dinov3": 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of a random tiny model that is not at its trivial starting values."""
    made = {}
    for name, (kind, config, processor) in STOCK.items():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        if processor is not None:
            processor.save_pretrained(made[name])
    return made


def make_image(width=SIZE, height=SIZE, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def seen(config, *images):
    """(patches, grids) as the codec makes them."""
    arrays = [
        to_array(fit(p, config.image_size, config.patch_size, config.max_patches, config.resample))
        for p in images
    ]
    size = config.patch_size
    rows = [patchify(array, size) for array in arrays]
    grids = [[a.shape[0] // size, a.shape[1] // size] for a in arrays]
    return torch.from_numpy(np.concatenate(rows)), torch.tensor(grids)


def stock(name, folder):
    return getattr(transformers, STOCK[name][0]).from_pretrained(folder).eval()


def stock_inputs(name, image):
    """What the stock processor gives."""
    processor = STOCK[name][2]
    if processor is None:  # DINOv3, by hand: rescaled, (not) resized, normalised
        mean, deviation = (np.array(row, np.float32) for row in pretrained.IMAGENET)
        pixels = (np.asarray(image, np.float32) / 255 - mean) / deviation
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1)[None].float()}
    return dict(processor(image, return_tensors="pt"))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, -1, 0, 1, (-1, 1)])
@pytest.mark.parametrize("name", STOCK)
def test_features_are_the_stock_hidden_states_of_the_stock_pixels(name, layer, folders):
    tower = load_encoder(str(folders[name]), TowerOptions(layer))
    image = make_image()
    states = stock(name, folders[name])(
        **stock_inputs(name, image), output_hidden_states=True
    ).hidden_states
    layers = layer if isinstance(layer, tuple) else (layer,)
    expected = torch.cat([states[n][0, SPECIAL[name] :] for n in layers], -1)
    features = tower(*seen(tower.config, image))
    assert features.shape == (16, tower.config.width)
    close(features, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", STOCK)
def test_the_last_layer_with_norm_is_the_last_hidden_state(name, folders):
    """CLIP's has seen no norm: post_layernorm is for its class token."""
    tower = load_encoder(str(folders[name]), TowerOptions(-1, norm=True))
    image = make_image()
    model = stock(name, folders[name])
    expected = model(**stock_inputs(name, image)).last_hidden_state[0, SPECIAL[name] :]
    close(
        tower(*seen(tower.config, image)),
        model.post_layernorm(expected) if name == "clip" else expected,
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_an_image_is_resized_as_the_stock_processor_does(name, folders):
    """SigLIP squeezes with the bicubic, NaFlex keeps the aspect with the bilinear filter."""
    tower = load_encoder(str(folders[name]), TowerOptions())
    image = make_image(50, 50 if name == "siglip2" else 41)
    states = stock(name, folders[name])(
        **stock_inputs(name, image), output_hidden_states=True
    ).hidden_states
    close(tower(*seen(tower.config, image)), states[-2][0])


@torch.no_grad()
def test_naflex_keeps_the_aspect(folders):
    tower = load_encoder(str(folders["siglip2"]), TowerOptions())
    assert tower.config.max_patches == 16
    image = make_image(5 * PATCH, 3 * PATCH)  # as many patches as fit, for both
    inputs = stock_inputs("siglip2", image)
    patches, grids = seen(tower.config, image)
    assert inputs["spatial_shapes"].tolist() == grids.tolist() == [[3, 5]]
    states = stock("siglip2", folders["siglip2"])(**inputs, output_hidden_states=True).hidden_states
    close(tower(patches, grids), states[-2][0, :15])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in STOCK if name != "siglip2"])
def test_another_grid_than_trained_is_interpolated_as_the_family_does(name, folders):
    tower = load_encoder(str(folders[name]), TowerOptions(image_size=48))
    assert (tower.config.image_size, tower.config.grid[:3]) == (48, "6x6")
    pixels = torch.randn(1, 3, 48, 24)
    more = {"interpolate_pos_encoding": True} if name in ("clip", "siglip") else {}
    states = stock(name, folders[name])(pixels, output_hidden_states=True, **more).hidden_states
    mean, deviation = (
        torch.tensor(colour)[:, None, None]
        for colour in (tower.config.mean, tower.config.deviation)
    )
    raw = (pixels[0] * deviation + mean) * 2 - 1
    patches = torch.from_numpy(patchify(raw.permute(1, 2, 0).numpy(), PATCH))
    close(tower(patches, torch.tensor([[6, 3]])), states[-2][0, SPECIAL[name] :])


@torch.no_grad()
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("sizes", [[(32, 32), (32, 32)], [(32, 32), (16, 40), (8, 8), (16, 40)]])
def test_images_together_equal_each_alone(name, sizes, folders):
    tower = load_encoder(str(folders[name]), TowerOptions(max_patches=16))
    parts = [
        (
            torch.from_numpy(patchify(to_array(make_image(*size, n)), PATCH)),
            (size[1] // 8, size[0] // 8),
        )
        for n, size in enumerate(sizes)
    ]
    grids = torch.tensor([grid for _, grid in parts])
    together = tower(torch.cat([p for p, _ in parts]), grids)
    close(together, torch.cat([tower(p, torch.tensor([grid])) for p, grid in parts]))
    with using(varlen):  # an accelerator's: images of several sizes are segments of one row
        close(tower(torch.cat([p for p, _ in parts]), grids), together)


@pytest.mark.parametrize("name", STOCK)
def test_gradients_reach_every_block_and_the_pixels(name, folders):
    tower = load_encoder(str(folders[name]), TowerOptions()).train()
    assert len(tower.layers) == LAYERS - 1  # what comes after the features is not there
    patches, grids = seen(tower.config, make_image())
    again = tower(patches, grids)
    assert torch.equal(tower(patches, grids), again)  # in training too
    tower(patches.requires_grad_(), grids).square().sum().backward()
    assert patches.grad.abs().sum() > 0
    for block in tower.layers:
        for key, parameter in block.named_parameters():
            if not key.endswith("k_proj.bias"):  # which a softmax takes out
                assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", STOCK)
def test_bfloat16_is_near(name, frozen, folders):
    """As the trainer runs it: under autocast, what is frozen held in bfloat16."""
    tower = load_encoder(str(folders[name]), TowerOptions()).requires_grad_(not frozen)
    inputs = seen(tower.config, make_image())
    expected = tower(*inputs).detach()
    LoweredWeights(tower, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        features = tower(*inputs)
    assert ((features - expected).norm() / expected.norm()).item() < 0.03


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, (1, -1)])
@pytest.mark.parametrize("name", [*STOCK, "dinov2+siglip", "clip+dinov3"])
def test_saved_and_restored_is_the_same(name, layer, folders, tmp_path):
    source = "+".join(str(folders[part]) for part in name.split("+"))
    encoder = load_encoder(source, TowerOptions(layer))
    save_encoder(tmp_path, encoder)
    config = from_dict(EncoderConfig, json.loads(json.dumps(to_dict(encoder.config))))
    assert config == encoder.config
    inputs = seen(config, make_image(), make_image(seed=1))
    assert torch.equal(restore_encoder(tmp_path, config)(*inputs), encoder(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("name", STOCK)
def test_what_is_saved_is_a_stock_checkpoint(name, folders, tmp_path):
    tower = load_encoder(str(folders[name]), TowerOptions(-2))
    save_encoder(tmp_path, tower)
    model, report = getattr(transformers, STOCK[name][0]).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    image = make_image()
    states = model.eval()(**stock_inputs(name, image), output_hidden_states=True).hidden_states
    close(tower(*seen(tower.config, image)), states[-1][0, SPECIAL[name] :])


@torch.no_grad()
def test_two_encoders_are_fused_on_the_channels(folders):
    first, second = (load_encoder(str(folders[n]), TowerOptions()) for n in ("dinov2", "siglip"))
    fused = load_encoder(f"{folders['dinov2']}+{folders['siglip']}", TowerOptions())
    assert fused.config.width == first.config.width + second.config.width == 2 * WIDTH
    assert len(fused.layers) == len(first.layers) + len(second.layers)
    assert fused.config.mixing == 2 * WIDTH * (LAYERS - 1)
    patches, grids = seen(fused.config, make_image(), make_image(seed=1))
    expected = torch.cat([first(patches, grids), second(patches, grids)], -1)
    assert torch.equal(fused(patches, grids), expected)


def test_fused_encoders_need_one_grid(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["image_size"] = 64
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(key for key in weights if "position_embedding" in key)
    weights[name] = torch.randn(65, WIDTH)
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    both = f"{folders['siglip']}+{tmp_path / 'other'}"
    with pytest.raises(ConfigError, match=r"4x4 patches of 8 pixels and .* 8x8 patches of 8"):
        load_encoder(both, TowerOptions())
    assert load_encoder(both, TowerOptions(image_size=48)).config.image_size == 48
    with pytest.raises(ConfigError, match="up to 16 patches"):
        load_encoder(f"{folders['siglip']}+{folders['siglip2']}", TowerOptions())
    with pytest.raises(ConfigError, match="found 3 names"):
        load_encoder("a+b+c", TowerOptions())


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("clip", CLIPModel, CLIPConfig),
        ("siglip", SiglipModel, SiglipConfig),
        ("siglip2", Siglip2Model, Siglip2Config),
    ],
)
def test_the_visual_half_of_a_pair_is_found(name, kind, settings, whole, tmp_path):
    """As the hub has it: both halves in one file, `vision_model.` before the visual one's names;
    version 4 of transformers wrote that prefix with the visual configuration alone, too."""
    torch.manual_seed(0)
    text = {**COMMON, "vocab_size": 20, "intermediate_size": 24, "max_position_embeddings": 8}
    vision = STOCK[name][1]
    model = kind(settings(text_config=text, vision_config=vision.to_dict())).eval()
    model.save_pretrained(tmp_path)
    assert "vision_model.encoder.layers.0.mlp.fc1.weight" in load_file(
        tmp_path / "model.safetensors"
    )
    if not whole:
        vision.save_pretrained(tmp_path)
    STOCK[name][2].save_pretrained(tmp_path)
    tower = load_encoder(str(tmp_path), TowerOptions(-1))
    image = make_image()
    states = model.vision_model(
        **stock_inputs(name, image), output_hidden_states=True
    ).hidden_states
    close(tower(*seen(tower.config, image)), states[-1][0, SPECIAL[name] :])


def test_a_hub_id_is_read_from_the_cache_without_a_network(folders, tmp_path, monkeypatch):
    commit = "0" * 40
    repository = tmp_path / "models--someone--siglip"
    shutil.copytree(folders["siglip"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tower = load_encoder("someone/siglip", TowerOptions())
    assert tower.config.source == "someone/siglip"
    assert tower.config.mean == tuple(ODD["image_mean"])
    inputs = seen(tower.config, make_image())
    folder = load_encoder(str(folders["siglip"]), TowerOptions())
    assert torch.equal(tower(*inputs), folder(*inputs))
    with pytest.raises(CheckpointError, match="no visual encoder") as error:
        load_encoder("someone/absent", TowerOptions())
    assert "\n" not in str(error.value)
    for file in (repository / "snapshots" / commit).glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="how images are normalised"):
        load_encoder("someone/siglip", TowerOptions())


@torch.no_grad()
def test_a_resolution_that_patches_do_not_divide_is_cut_as_the_convolution_does(folders, tmp_path):
    """So400m/14 at 384: 27 patches a side, of 378 pixels."""
    shutil.copytree(folders["siglip"], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "image_size": 35}))
    tower = load_encoder(str(tmp_path / "odd"), TowerOptions())
    image = make_image(35, 35)
    processor = SiglipImageProcessorPil(size={"height": 35, "width": 35}, **ODD)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    states = stock("siglip", tmp_path / "odd")(pixels, output_hidden_states=True).hidden_states
    patches, grids = seen(tower.config, image)
    assert grids.tolist() == [[4, 4]]
    close(tower(patches, grids), states[-2][0])


@pytest.mark.parametrize(
    ("stated", "mean", "deviation"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"do_normalize": False, "image_mean": [0.3] * 3}, 0.0, 1.0),
        (
            {**{k: [0.2] * 3 for k in ("image_mean", "image_std")}, "rescale_factor": 2 / 255},
            0.1,
            0.1,
        ),
        ({"image_processor": {"image_mean": [0.4] * 3, "image_std": [0.6] * 3}}, 0.4, 0.6),
    ],
)
def test_normalisation_is_read_from_either_file(stated, mean, deviation, folders, tmp_path):
    shutil.copytree(folders["dinov3"], tmp_path / "tower")
    nested = "image_processor" in stated
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / "tower" / file).write_text(json.dumps(stated))
    config = load_encoder(str(tmp_path / "tower"), TowerOptions()).config
    assert config.mean == pytest.approx([mean] * 3)
    assert config.deviation == pytest.approx([deviation] * 3)


def test_what_cannot_be_loaded_is_one_line(folders, tmp_path):
    def fails(folder, match, kind=CheckpointError, options=None):
        with pytest.raises(kind, match=match) as error:
            load_encoder(str(folder), options or TowerOptions())
        assert "\n" not in str(error.value)

    fails(tmp_path, "no visual encoder that transformers can load")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    fails(tmp_path, "a 'llama', expected one of clip_vision_model")
    shutil.copy(folders["clip"] / "config.json", tmp_path / "config.json")
    fails(tmp_path, "no visual encoder that transformers can load")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    fails(tmp_path, "no visual encoder that transformers can load")
    weights = load_file(folders["clip"] / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")  # a pickle
    fails(tmp_path, "no visual encoder that transformers can load .*safetensors")
    name = next(key for key in weights if "layers.1.mlp.fc1.weight" in key)
    save_file(
        {key: value for key, value in weights.items() if key != name},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    fails(tmp_path, "1 weights of the encoder are not in it, first encoder.layers.1.mlp.fc1.weight")
    weights[name] = weights[name][:3].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    fails(tmp_path, "no visual encoder that transformers can load")
    for layer in (9, -5, (), (-1, 4)):
        fails(folders["clip"], "has 4 hidden states", ConfigError, TowerOptions(layer))
    fails(folders["clip"], "less than one patch", ConfigError, TowerOptions(image_size=4))
