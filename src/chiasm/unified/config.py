"""Configurations of the unified route; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from chiasm.core.config import Custom, tag
from chiasm.core.errors import ConfigError
from chiasm.vision.config import VideoConfig

if TYPE_CHECKING:
    from chiasm.unified.quantizers.base import Quantizer


@tag("fsq")
@dataclass(frozen=True)
class FSQConfig:
    """Finite scalar quantisation: levels per dimension; their product is the number of codes."""

    levels: tuple[int, ...] = (8, 8, 8)

    @property
    def codes(self) -> int:
        product = 1
        for level in self.levels:
            product *= level
        return product

    @property
    def width(self) -> int:
        return len(self.levels)


@tag("vq")
@dataclass(frozen=True)
class VQConfig:
    """A learned codebook updated by moving averages; codes unused for `patience` batches are
    replaced by present encoder outputs."""

    codes: int = 512
    width: int = 16
    decay: float = 0.99
    commitment: float = 0.25
    patience: int = 20


@tag("lfq")
@dataclass(frozen=True)
class LFQConfig:
    """Lookup-free quantisation: one bit a channel, 2^bits codes.

    entropy weighs the penalty that makes each choice certain and, times `diversity`, all codes
    equally frequent; sharpness is the inverse temperature of the choice there; group: at most so
    many bits are counted together (2^group numbers a place). commitment pulls towards ±1.
    """

    bits: int = 9
    entropy: float = 0.1
    diversity: float = 1.0
    commitment: float = 0.25
    sharpness: float = 1.0
    group: int = 9

    @property
    def codes(self) -> int:
        return 2**self.bits

    @property
    def width(self) -> int:
        return self.bits


@tag("residual_vq")
@dataclass(frozen=True)
class ResidualVQConfig:
    """`depth` codes a place from one codebook, each for what the ones before left over; the rest
    as VQConfig. An image then has `depth` times as many codes."""

    codes: int = 512
    width: int = 16
    depth: int = 2
    decay: float = 0.99
    commitment: float = 0.25
    patience: int = 20


class CustomQuantizer(Custom):
    """Base of the configuration of a quantizer of your own: a frozen dataclass that has, as fields
    or properties, `codes` (size of the codebook) and `width` (channels), and may have `depth`
    (codes a place)."""

    if TYPE_CHECKING:  # a field or a property, of the subclass

        @property
        def codes(self) -> int: ...

        @property
        def width(self) -> int: ...

    def build(self) -> Quantizer:
        """The quantizer."""
        raise NotImplementedError


QuantizerConfig = FSQConfig | VQConfig | LFQConfig | ResidualVQConfig | CustomQuantizer


@tag("vit_networks")
@dataclass(frozen=True)
class TokenizerViT:
    """Transformers instead of convolutions on both sides of the bottleneck (ViT-VQGAN, 2110.04627,
    section 3.1). patch_size is the stride."""

    patch_size: int = 8
    width: int = 192
    layers: int = 4
    heads: int = 6
    mlp_ratio: int = 4


@tag("hf_networks")
@dataclass(frozen=True)
class StockNetworks:
    """The networks of a published tokenizer instead (unified/stock_networks.py).

    family: whose class in transformers; settings: its vq_config. Chameleon's has no decoder: ours
    takes its place, or none where decoder_channels is 0.
    """

    family: Literal["chameleon", "emu3"]
    settings: dict[str, Any]

    @property
    def stride(self) -> int:
        usual = {"chameleon": (1, 1, 2, 2, 4), "emu3": (1, 2, 2, 4)}[self.family]
        return 2 ** (len(self.settings.get("channel_multiplier", usual)) - 1)


@tag("autoencoder")
@dataclass(frozen=True)
class AutoencoderConfig:
    """An autoencoder with a discrete bottleneck, by default convolutional, its encoder in
    Chameleon's shape.

    image_size in pixels (images are squeezed to it; the networks take any multiple of the stride).
    vit: transformers instead; hf_networks: published networks instead, to which the next fields do
    not apply. The stride is 2^(len(multipliers) - 1), or theirs. base_channels must be a multiple
    of 32. decoder_channels: width of the decoder at the code grid.
    pixel_loss: squared or absolute error. edge_loss_weight: its additional weight at edges, strokes
    and small objects, which flat backgrounds would outvote.
    perceptual: weight of the distance between features of both images (unified/perceptual.py);
    perceptual_encoder: whose, the folder of a contrastive encoder or any encoder that model.encoder
    of the MLLM takes; None is our demo's, trained first on the same data.
    adversarial: weight of a patch discriminator's loss (unified/discriminator.py), from batch
    `adversarial_start` on; a stage must give its group "discriminator" a rate.
    caption_loss_weight: weight of predicting the caption's words from the codes
    (unified/caption_reader.py), caption_vocab: size of the vocabulary they are predicted in.
    usage_floor: a warning is printed when fewer than this share of the codes were used in the last
    hundred batches.
    shift, mirror: augmentation.
    """

    quantizer: QuantizerConfig = FSQConfig()
    image_size: int = 64
    vit: TokenizerViT | None = None
    hf_networks: StockNetworks | None = None
    base_channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 1, 1)
    res_blocks: int = 0
    decoder_channels: int = 128
    decoder_blocks: int = 2
    pixel_loss: Literal["l2", "l1"] = "l2"
    edge_loss_weight: float = 8.0
    perceptual: float = 0.0
    perceptual_encoder: str | None = None
    adversarial: float = 0.0
    adversarial_start: int = 0
    caption_loss_weight: float = 0.0
    caption_vocab: int = 512
    usage_floor: float = 0.1
    shift: int = 0
    mirror: bool = True

    @property
    def stride(self) -> int:
        if self.hf_networks:
            return self.hf_networks.stride
        return self.vit.patch_size if self.vit else 2 ** (len(self.multipliers) - 1)


@tag("unified")
@dataclass(frozen=True)
class UnifiedConfig:
    """A causal transformer over one vocabulary of text and image ids.

    tokenizer: folder of a trained image tokenizer. image_codes: folder of codes precomputed with it
    (chiasm precompute). text_vocabulary: size of the BPE. intermediate_size is the SwiGLU's width.
    kv_heads below heads is grouped-query attention. tied: the head is the embedding.

    Stabilisers, each a switch by itself: qk_norm (True is Chameleon's LayerNorm a head, "rms"
    without mean and bias), z_loss, post_norm (norms after the branches: nn/block.py), dropout,
    attention_softcap and logit_softcap (Gemma 2, 2408.00118, section 2: 50 and 30; 0 is none).

    image_attention: "bidirectional" lets the codes of given images attend to each other; generated
    ones stay causal. rope: "2d" turns codes by row and column (unified/image_layout.py for both).
    rope_theta: small, as an image's neighbours are near.
    mup_base_width: the width at which the rates were found; they then hold at other widths (μP,
    2203.03466, table 8). 0 is off. Scale the number of heads with the width, not their size.

    image_weight scales the loss of image ids against text: an image has 64 of them and an answer
    two, which would otherwise hardly count. factorized_code_embedding: image codes train with the
    levels they have in common (unified/code_sharing.py). local_attention_init: some heads are
    initialised to attend to neighbouring codes (unified/local_heads.py). cfg_dropout: fraction of
    generated images trained without their text, for classifier-free guidance. held_out_captions:
    captions whose images are never generated in training, only given: does the model generate
    combinations that it was not trained to generate?
    """

    tokenizer: str | None = None
    image_codes: str | None = None
    text_vocabulary: int = 400
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    intermediate_size: int = 512
    tied: bool = False
    qk_norm: bool | Literal["rms"] = True
    z_loss: float = 1e-5
    post_norm: bool = False
    dropout: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    image_attention: Literal["causal", "bidirectional"] = "causal"
    rope: Literal["1d", "2d"] = "1d"
    rope_theta: float = 100.0
    mup_base_width: int = 0
    image_weight: float = 0.1
    factorized_code_embedding: bool = True
    local_attention_init: bool = True
    cfg_dropout: float = 0.1
    held_out_captions: tuple[str, ...] = ()
    image_objective: Literal["next", "masked"] = "next"
    grids: tuple[tuple[int, int], ...] = ()
    row_ends: bool = False
    max_length: int = 1024
    video: VideoConfig = field(default_factory=VideoConfig)

    def __post_init__(self) -> None:
        if self.row_ends and (self.rope == "2d" or self.image_objective == "masked"):
            raise ConfigError(
                "model.row_ends cuts images into rows, which rope 2d and image_objective masked "
                "take as a whole; leave it off with them"
            )
        if len({grid[1] for grid in self.grids}) > 1 and self.rope == "2d":
            raise ConfigError(
                "model.grids of several widths need model.rope 1d, or grids of one width"
            )
        if (
            self.hidden_size % self.heads
            or self.heads % self.kv_heads
            or self.hidden_size // self.heads % 2
        ):
            raise ConfigError(
                f"model.hidden_size {self.hidden_size}, heads {self.heads}, kv_heads "
                f"{self.kv_heads}: heads must divide hidden_size into even sizes, and kv_heads "
                "must divide heads"
            )

    @property
    def widening(self) -> float:
        """How many times wider than where the rates were found; 1 without μP."""
        return self.hidden_size / self.mup_base_width if self.mup_base_width else 1.0
