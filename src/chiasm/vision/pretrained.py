"""Visual encoders from transformers, behind the contract of our ViT.

Patches arrive as the codec makes them, in [-1, 1], and each encoder maps them to its own mean and
deviation: one codec serves all, and two encoders can share the same patches.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.quiet import quiet
from chiasm.nn.attention import AttentionPlan, attention, images_layout, on_device
from chiasm.nn.fuse_norms import fuse_norms
from chiasm.nn.kernels import kernels_of
from chiasm.vision.config import FusedConfig, TowerConfig, TowerOptions
from chiasm.vision.vit import ViT

Colour = tuple[float, float, float]
HALF: Colour = (0.5, 0.5, 0.5)
OPENAI: tuple[Colour, Colour] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _clip(model: Any, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return model.pre_layrnorm(model.embeddings(pixels, interpolate_pos_encoding=True)), {}


def _siglip(model: Any, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return model.embeddings(pixels, interpolate_pos_encoding=True), {}


def _dinov2(model: Any, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return model.embeddings(pixels), {}


def _dinov3(model: Any, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return model.embeddings(pixels), {"position_embeddings": model.rope_embeddings(pixels)}


def _idefics3(model: Any, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    p = model.patch_size
    real = pixels.new_ones(len(pixels), pixels.shape[2] // p, pixels.shape[3] // p).bool()
    return model.embeddings(pixels, real), {}


@dataclass(frozen=True)
class Family:
    """What tells one architecture from another.

    model: transformers' class. embed: pixels [n 3 H W] to the first hidden state [n L D], and what
    every block is given besides; None for NaFlex, which takes packed patches. blocks, norm: where
    they are in the model. colours, resample: mean and deviation, and PIL's number of the filter
    (1 Lanczos, 2 bilinear, 3 bicubic), where a checkpoint does not say. class_token: it has one,
    the first. prefix: of the tensors' names in files, which transformers 4 and published
    checkpoints have and transformers 5 reads, but does not write.
    """

    model: str
    embed: Callable[[Any, Tensor], tuple[Tensor, dict[str, Any]]] | None
    blocks: str
    norm: str
    colours: tuple[Colour, Colour]
    resample: int = 3
    class_token: bool = True
    prefix: str = ""


FAMILIES = {
    "clip_vision_model": Family(
        "CLIPVisionModel",
        _clip,
        "encoder.layers",
        "post_layernorm",
        OPENAI,
        prefix="vision_model.",
    ),
    "siglip_vision_model": Family(
        "SiglipVisionModel",
        _siglip,
        "encoder.layers",
        "post_layernorm",
        (HALF, HALF),
        3,
        False,
        "vision_model.",
    ),
    "siglip2_vision_model": Family(
        "Siglip2VisionModel",
        None,
        "encoder.layers",
        "post_layernorm",
        (HALF, HALF),
        2,
        False,
        "vision_model.",
    ),
    "idefics3_vision": Family(
        "Idefics3VisionTransformer",
        _idefics3,
        "encoder.layers",
        "post_layernorm",
        (HALF, HALF),
        1,
        False,
    ),
    "smolvlm_vision": Family(
        "SmolVLMVisionTransformer",
        _idefics3,
        "encoder.layers",
        "post_layernorm",
        (HALF, HALF),
        1,
        False,
    ),
    "dinov2": Family("Dinov2Model", _dinov2, "encoder.layer", "layernorm", IMAGENET),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", _dinov2, "encoder.layer", "layernorm", IMAGENET
    ),
    "dinov3_vit": Family("DINOv3ViTModel", _dinov3, "model.layer", "norm", IMAGENET, 2),
}


SEAM = "chiasm-tower"
"""The name under which transformers knows the attention of towers."""


def attention_forward(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | AttentionPlan | None,
    scaling: float | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over ours: everybody in a row [B H T D] sees what the mask
    [B 1 1 T] allows, or what the layout given as one says -> [B T H D]."""
    layout = mask if isinstance(mask, AttentionPlan) else AttentionPlan(mask)
    mixed = attention(query, key, value, layout, scaling)
    return mixed.transpose(1, 2).contiguous(), None


class Tower(nn.Module):
    """patches [P, 3·p·p] of N images with grids [N 2] -> features [P, width].

    Class and register tokens take part but are left out of the features, which stay one a patch;
    with class_token each image's class token comes before its patches: [N + P, width].
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, config: TowerConfig, model: Any):
        from transformers.modeling_utils import AttentionInterface

        super().__init__()
        self.config, self.model = config, model
        self.family = FAMILIES[config.family]
        AttentionInterface.register(SEAM, attention_forward)
        model.set_attn_implementation(SEAM)
        fuse_norms(model, self.layers)
        mean, deviation = torch.tensor(config.mean), torch.tensor(config.deviation)
        # ((x + 1) / 2 - mean) / deviation, as one multiplication and one addition.
        self.register_buffer("scale", (0.5 / deviation)[:, None], persistent=False)
        self.register_buffer("offset", ((0.5 - mean) / deviation)[:, None], persistent=False)

    @property
    def special(self) -> int:
        """Tokens of an image that are no patches: class and registers."""
        return self.family.class_token + getattr(self.model.config, "num_register_tokens", 0)

    @property
    def towers(self) -> list[Tower]:
        """As ViT's."""
        return [self]

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(operator.attrgetter(self.family.blocks)(self.model))

    def train(self, mode: bool = True) -> Tower:
        """As in evaluation always: DINOv3 in training mode stretches its positions at random, so
        that a frozen encoder would see another image each time."""
        return super().train(False)

    def forward(self, patches: Tensor, grids: Tensor) -> Tensor:
        x = patches.unflatten(1, (3, -1)) * self.scale + self.offset
        shapes = [(int(h), int(w)) for h, w in grids.tolist()]
        return self._packed(x, shapes) if self.family.embed is None else self._by_grid(x, shapes)

    def _by_grid(self, x: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Images of one grid together, as pixels. x [P 3 p·p]."""
        assert self.family.embed is not None
        images = x.split([h * w for h, w in shapes])
        embedded: list[tuple[Tensor, dict[str, Any]]] = []
        members: list[list[int]] = []
        for grid in dict.fromkeys(shapes):
            members.append([i for i, shape in enumerate(shapes) if shape == grid])
            pixels = _pixels(torch.stack([images[i] for i in members[-1]]), grid)
            embedded.append(self.family.embed(self.model, pixels))
        if len(members) > 1 and _in_one_row(x.device) and not any(extra for _, extra in embedded):
            hidden = self._as_one_row([rows for rows, _ in embedded])
        else:
            hidden = [self._blocks(rows, extra) for rows, extra in embedded]
        features: dict[int, Tensor] = {}
        for which, rows in zip(members, hidden, strict=True):
            h, w = shapes[which[0]]
            special = rows.shape[1] - h * w
            rows = torch.cat([rows[:, : self.config.class_token], rows[:, special:]], 1)
            features.update(zip(which, rows, strict=True))
        return torch.cat([features[i] for i in range(len(shapes))])

    def _as_one_row(self, groups: list[Tensor]) -> list[Tensor]:
        """The blocks run once for groups [n L D] of images of one length each."""
        row = torch.cat([rows.flatten(0, 1) for rows in groups])[None]
        lengths = [rows.shape[1] for rows in groups for _ in rows]
        layout = images_layout(lengths, row.device)
        parts = self._blocks(row, {"attention_mask": layout})[0].split(
            [rows.shape[0] * rows.shape[1] for rows in groups]
        )
        return [part.unflatten(0, g.shape[:2]) for part, g in zip(parts, groups, strict=True)]

    def _packed(self, x: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """NaFlex: every image a row of patches, filled up to the longest. x [P 3 p·p]."""
        # Inside a patch its order is (y, x, channel), ours (channel, y, x).
        counts = [h * w for h, w in shapes]
        images = x.transpose(1, 2).flatten(1).split(counts)
        rows = nn.utils.rnn.pad_sequence(list(images), batch_first=True)
        hidden = self.model.embeddings(rows, torch.tensor(shapes))
        if len(set(counts)) == 1:
            return self._blocks(hidden, {}).flatten(0, 1)
        real = np.arange(rows.shape[1]) < np.array(counts)[:, None]
        place = on_device(np.flatnonzero(real), x.device)
        if _in_one_row(x.device):
            layout = images_layout(counts, x.device)
            row = hidden.flatten(0, 1).index_select(0, place)[None]
            return self._blocks(row, {"attention_mask": layout})[0]
        mask = on_device(real, x.device)[:, None, None]
        hidden = self._blocks(hidden, {"attention_mask": mask})
        return hidden.flatten(0, 1).index_select(0, place)

    def _blocks(self, x: Tensor, extra: dict[str, Any]) -> Tensor:
        """[n L D] -> the chosen hidden states [n L width]."""
        extra = {"attention_mask": None, **extra}
        seen = {0: x}
        for number, block in enumerate(self.layers[: max(self.config.chosen)], 1):
            x = block(x, **extra)
            if number in self.config.chosen:
                seen[number] = x
        chosen = [seen[number] for number in self.config.chosen]
        if self.config.norm:
            chosen = [getattr(self.model, self.family.norm)(state) for state in chosen]
        return torch.cat(chosen, -1)


class FusedTowers(nn.Module):
    """Two encoders on the same patches, their features concatenated: what one is blind to the
    other may see (2401.06209; DINOv2 with SigLIP, 2402.07865). The contract of Tower."""

    def __init__(self, first: Tower, second: Tower):
        super().__init__()
        self.config = FusedConfig(first.config, second.config)
        self.first, self.second = first, second

    @property
    def towers(self) -> list[Tower]:
        """As ViT's."""
        return [self.first, self.second]

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.first.layers, *self.second.layers]

    def forward(self, patches: Tensor, grids: Tensor) -> Tensor:
        return torch.cat([self.first(patches, grids), self.second(patches, grids)], -1)


Encoder = ViT | Tower | FusedTowers


def load_encoder(source: str, options: TowerOptions) -> Tower | FusedTowers:
    """The encoder of a hub id or a folder in transformers' format, in fp32; two of them fused where
    they are joined by "+". Raises CheckpointError, or ConfigError where the options do not fit."""
    if "+" not in source or Path(source).exists():
        return _load(source, options)
    parts = [part.strip() for part in source.split("+")]
    if len(parts) != 2 or not all(parts):
        raise ConfigError(f"{source}: two encoders are fused as 'A+B'; found {len(parts)} names")
    first, second = (_load(part, options) for part in parts)
    return FusedTowers(first, second)


def outline(source: str, theirs: Any, options: TowerOptions) -> Tower:
    """An encoder of transformers' configuration `theirs`, without weights from anywhere: what
    a plan needs to know its size. Colours are the family's. Raises ConfigError as load_encoder."""
    import transformers
    from transformers.initialization import no_init_weights

    if theirs.model_type not in FAMILIES:
        raise ConfigError(f"{source}: a '{theirs.model_type}', expected {', '.join(FAMILIES)}")
    config = _resolve(source, theirs, options, {})
    settings = _settings(theirs, config.layers)
    # SigLIP's initialisation reads numbers, which tensors without storage do not have.
    with no_init_weights():
        return Tower(config, getattr(transformers, FAMILIES[config.family].model)(settings))


def adopt_encoder(model: Any, source: str, options: TowerOptions) -> Tower:
    """The encoder of a larger checkpoint at `source`, already loaded, with all its blocks."""
    config = _resolve(source, model.config, options, _preprocessing(source))
    return Tower(config, model.eval())


def save_encoder(folder: Path, encoder: Tower | FusedTowers) -> None:
    """Each encoder as a standard checkpoint of the blocks it has kept, which transformers 4 and 5
    read."""
    if isinstance(encoder, FusedTowers):
        save_encoder(folder / "first", encoder.first)
        save_encoder(folder / "second", encoder.second)
        return
    with quiet():
        encoder.model.save_pretrained(folder)
    if prefix := encoder.family.prefix:
        for file in folder.glob("model*.safetensors*"):  # parts of a large one, and their index
            file.unlink()
        named = {prefix + name.removeprefix(prefix): v for name, v in _state(encoder).items()}
        save_torch_state_dict(named, folder, max_shard_size="5GB")


def _state(encoder: Tower) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in encoder.model.state_dict().items()}


def restore_encoder(folder: Path, config: TowerConfig | FusedConfig) -> Tower | FusedTowers:
    """The inverse of save_encoder. Raises CheckpointError."""
    if isinstance(config, FusedConfig):
        return FusedTowers(
            _restore(folder / "first", config.first), _restore(folder / "second", config.second)
        )
    return _restore(folder, config)


def _restore(folder: Path, config: TowerConfig) -> Tower:
    return Tower(config, _model(str(folder), _read_config(str(folder)), config.layers))


def _load(source: str, options: TowerOptions) -> Tower:
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    theirs = _read_config(source)
    config = _resolve(source, theirs, options, _preprocessing(source))
    return Tower(config, _model(source, theirs, config.layers))


def _read_config(source: str) -> Any:
    """transformers' configuration of the vision part."""
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(source, error) from None
    config = getattr(config, "vision_config", config)
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"{source}: a '{config.model_type}', expected one of {', '.join(FAMILIES)}; "
            "choose an encoder of these families"
        )
    return config


def _model(source: str, config: Any, layers: int) -> Any:
    """The weights of the first `layers` blocks, without a pooling head."""
    import transformers
    from safetensors import SafetensorError

    kind = getattr(transformers, FAMILIES[config.model_type].model)
    with quiet():
        try:
            model, report = kind.from_pretrained(
                source,
                config=_settings(config, layers),
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _unreadable(source, error) from None
    # transformers fills what it does not find with random numbers.
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} weights of the encoder are not in it, first {missing[0]}; "
            "was it saved whole, and by this architecture?"
        )
    return model.eval()


def _settings(config: Any, layers: int) -> Any:
    """transformers' configuration of the first `layers` blocks, without a pooling head."""
    settings = {**config.to_dict(), "num_hidden_layers": layers, "vision_use_head": False}
    for derived in ("stage_names", "out_features", "out_indices"):  # they count the blocks
        settings.pop(derived, None)
    return type(config).from_dict(settings)


def _resolve(
    source: str, theirs: Any, options: TowerOptions, stated: dict[str, Any]
) -> TowerConfig:
    family = FAMILIES[theirs.model_type]
    states = theirs.num_hidden_layers + 1
    layers = (options.layer,) if isinstance(options.layer, int) else options.layer
    if not layers or not all(-states <= layer < states for layer in layers):
        raise ConfigError(
            f"model.vision.layer: {options.layer}, but {source} has {states} hidden states; "
            f"choose from {-states} to {states - 1}"
        )
    if options.class_token and not family.class_token:
        raise ConfigError(
            f"model.vision.class_token: {source} is a '{theirs.model_type}', which has none; "
            "set it to false"
        )
    chosen = tuple(layer % states for layer in layers)
    patch, max_patches = _side(theirs.patch_size, source), options.max_patches
    if family.embed is None:
        max_patches = max_patches or int(stated.get("max_num_patches") or 256)
        size = options.image_size or patch * max_patches  # no side is limited but by the count
    else:
        size = options.image_size or _side(theirs.image_size, source)
    if size < patch:
        raise ConfigError(
            f"model.vision.image_size: {size} pixels, less than one patch of {source} ({patch})"
        )
    mean, deviation = _colours(stated, family.colours)
    return TowerConfig(
        source=source,
        family=theirs.model_type,
        hidden=theirs.hidden_size,
        layers=max(chosen),
        chosen=chosen,
        norm=options.norm,
        image_size=size,
        patch_size=patch,
        max_patches=max_patches,
        resample=int(stated.get("resample", family.resample)),
        mean=mean,
        deviation=deviation,
        class_token=options.class_token,
    )


def _preprocessing(source: str) -> dict[str, Any]:
    """What the checkpoint's processor does; nothing for a folder that does not say. Version 5 of
    transformers writes it inside processor_config.json, version 4 in a file of its own."""
    from transformers.utils import cached_file

    for name in ("processor_config.json", "preprocessor_config.json"):
        with quiet():
            try:
                file = cached_file(source, name)
            except (OSError, ValueError):
                continue
        try:
            stated = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{file}: unreadable ({error}); fetch it again") from None
        stated = stated.get("image_processor", stated)
        if "image_mean" in stated or "do_normalize" in stated:
            return stated
    if not Path(
        source
    ).is_dir():  # it is there, but could not be fetched: defaults would be a guess
        raise CheckpointError(
            f"{source}: neither processor_config.json nor preprocessor_config.json could be read, "
            "which say how images are normalised; try again or give the repository as a folder"
        )
    return {}


def _colours(stated: dict[str, Any], default: tuple[Colour, Colour]) -> tuple[Colour, Colour]:
    """Mean and deviation of pixels in [0, 1]."""
    if not stated.get("do_normalize", True):
        mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean = _three(stated.get("image_mean"), default[0])
        deviation = _three(stated.get("image_std"), default[1])
    # Theirs are of pixels in [0, 255] times a factor that need not be 1/255.
    factor = stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0
    unit = 255 * factor
    return _three([m / unit for m in mean], mean), _three([d / unit for d in deviation], deviation)


def _three(value: Any, default: Colour) -> Colour:
    if value is None:
        return default
    red, green, blue = value if isinstance(value, (list, tuple)) else [value] * 3
    return float(red), float(green), float(blue)


def _side(value: Any, source: str) -> int:
    """A size in pixels, that transformers keeps as a number or as two."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise CheckpointError(
            f"{source}: trained on images or patches of {value}; only squares are supported"
        )
    return int(sides.pop())


def _in_one_row(device: torch.device) -> bool:
    """Whether images of several sizes are segments of one row, which needs kernels for it; else
    images of a size are the rows of a batch."""
    return kernels_of(device).flex is not None


def _pixels(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[n P 3 p·p] -> [n 3 H W]"""
    size = int(x.shape[-1] ** 0.5)
    x = x.unflatten(-1, (size, size)).unflatten(1, grid)  # [n h w 3 p p]
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _unreadable(source: str, error: Exception) -> CheckpointError:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(
        f"{source}: no visual encoder that transformers can load ({said[0]}); give a folder of "
        "'chiasm train encoder', a folder with config.json and safetensors, or a hub id"
    )
