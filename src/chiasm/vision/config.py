"""Configurations of the visual encoders; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chiasm.core.config import tag
from chiasm.core.errors import ConfigError


@tag("vit")
@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer, by default layer for layer SigLIP's tower.

    image_size and patch_size in pixels. max_patches None squeezes every image to image_size
    squared; a number keeps the aspect within that many patches (position embeddings are
    interpolated). layers, width, heads, mlp_ratio as usual. chosen: the blocks, from 1, whose
    outputs are concatenated to features; none named: the last.
    """

    image_size: int = 64
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    max_patches: int | None = None
    chosen: tuple[int, ...] = ()

    @property
    def mixing(self) -> int:
        """The width that attention mixes, summed over the blocks: what its cost grows with."""
        return self.layers * self.width

    @property
    def resample(self) -> int:
        """The filter that images are resized with, as PIL numbers them: bicubic."""
        return 3

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of red, green and blue in [0, 1]."""
        return 0.5, 0.5, 0.5

    @property
    def class_token(self) -> bool:
        return False


@tag("encoder_options")
@dataclass(frozen=True)
class TowerOptions:
    """How an encoder of transformers is used (vision/pretrained.py).

    layer: whose features, counted as transformers' hidden_states: 0 is the embeddings, -1 the last
    block, LLaVA takes -2; several are concatenated, and blocks after the last of them are dropped.
    norm: the encoder's own last norm over them, which hidden_states never see: layer -1 with norm
    is what SigLIP and DINO call last_hidden_state. image_size in pixels: another resolution than
    the checkpoint's, positions being interpolated. max_patches: as ViTConfig; None squeezes, and
    leaves NaFlex its own number. class_token: the encoder's class token is a feature too, before
    those of an image's patches (LLaVA's "full" against its "default").
    """

    layer: int | tuple[int, ...] = -2
    norm: bool = False
    image_size: int | None = None
    max_patches: int | None = None
    class_token: bool = False


@tag("hf_encoder")
@dataclass(frozen=True)
class TowerConfig:
    """An encoder of transformers as it is used; read from a checkpoint, not written by hand.

    source: where it came from. family: transformers' model_type. hidden: the width of its blocks,
    of which `layers` are kept. chosen: which hidden states are its features. image_size,
    patch_size and max_patches as ViTConfig. resample: the filter that images are resized with, as
    PIL numbers them. mean and deviation of red, green and blue in [0, 1]. class_token: as
    TowerOptions.
    """

    source: str
    family: str
    hidden: int
    layers: int
    chosen: tuple[int, ...]
    norm: bool
    image_size: int
    patch_size: int
    max_patches: int | None
    resample: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    class_token: bool = False

    @property
    def width(self) -> int:
        return self.hidden * len(self.chosen)

    @property
    def mixing(self) -> int:
        return self.hidden * self.layers

    @property
    def grid(self) -> str:
        """The patches it sees, in words."""
        side = self.image_size // self.patch_size
        count = f"{side}x{side}" if self.max_patches is None else f"up to {self.max_patches}"
        return f"{count} patches of {self.patch_size} pixels"


@tag("fused_encoders")
@dataclass(frozen=True)
class FusedConfig:
    """Two encoders on the same patches, their features concatenated. Raises ConfigError where
    their grids differ."""

    first: TowerConfig
    second: TowerConfig

    def __post_init__(self) -> None:
        if self.first.grid != self.second.grid:
            raise ConfigError(
                f"{self.first.source} sees {self.first.grid} and {self.second.source} "
                f"{self.second.grid}, but two encoders are fused patch by patch; set "
                "model.vision.image_size (or max_patches), or choose two of one patch size"
            )

    @property
    def image_size(self) -> int:
        return self.first.image_size

    @property
    def patch_size(self) -> int:
        return self.first.patch_size

    @property
    def max_patches(self) -> int | None:
        return self.first.max_patches

    @property
    def resample(self) -> int:
        return self.first.resample

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.first.mean

    @property
    def class_token(self) -> bool:
        return self.first.class_token

    @property
    def width(self) -> int:
        return self.first.width + self.second.width

    @property
    def mixing(self) -> int:
        return self.first.mixing + self.second.mixing


@tag("video")
@dataclass(frozen=True)
class VideoConfig:
    """Which frames of a clip are seen, and in how many tokens (data/video.py).

    policy: "uniform" takes the middle frames of `frames` equal stretches of time; "fps" `fps`
    frames a second; "keyframes" those the encoder of the file stored whole. The latter two are
    thinned evenly to at most `frames`. max_tokens: of visual tokens for a clip; where its frames
    would take more, neighbouring ones are averaged. timestamps: say before each image at what
    second it stands.
    """

    policy: Literal["uniform", "fps", "keyframes"] = "uniform"
    frames: int = 8
    fps: float = 1.0
    max_tokens: int = 1024
    timestamps: bool = True


EncoderConfig = ViTConfig | TowerConfig | FusedConfig


def feature_width(config: EncoderConfig) -> int:
    """How many features a patch has."""
    return config.width * feature_levels(config) if isinstance(config, ViTConfig) else config.width


def feature_levels(config: EncoderConfig) -> int:
    """How many layers of one encoder its features are of, side by side; 1 for two encoders."""
    return 1 if isinstance(config, FusedConfig) else max(1, len(config.chosen))


@tag("contrastive")
@dataclass(frozen=True)
class ContrastiveConfig:
    """A visual and a text tower trained against each other.

    loss: SigLIP's sigmoid or CLIP's softmax. start_bias: the sigmoid's first bias, SigLIP's -10;
    few distinct captions have many more positives, for which it starts far too low. text_*: the
    text tower's shape; vocabulary is the size of its tokenizer, context the longest caption in
    tokens. shift: pixels of random translation; mirror: mirrored images are as likely (only for
    captions that do not speak of sides).
    """

    vision: ViTConfig = ViTConfig()
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    start_bias: float = -10.0
    embedding: int = 128
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 2
    vocabulary: int = 512
    context: int = 16
    shift: int = 0
    mirror: bool = True
