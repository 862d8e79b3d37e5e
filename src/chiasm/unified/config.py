"""Configurations of the unified route; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class VQConfig:
    """A learned codebook updated by moving averages; codes unused for `patience` batches are
    replaced by present encoder outputs."""

    codes: int = 512
    width: int = 16
    decay: float = 0.99
    commitment: float = 0.25
    patience: int = 20


@dataclass(frozen=True)
class AutoencoderConfig:
    """A convolutional autoencoder with a discrete bottleneck, its encoder in Chameleon's shape.

    image_size in pixels (pictures are squeezed to it; the networks take any multiple of the
    stride). The stride is 2^(len(multipliers) - 1). base_channels must be a multiple of 32.
    decoder_channels: width of the decoder at the code grid. detail: additional weight of the
    squared error at edges, strokes and small things, which flat backgrounds would outvote.
    caption: weight of reading the caption's words from the codes (unified/caption_reader.py),
    words: size of the vocabulary they are read in.
    shift, mirror: augmentation.
    """

    quantizer: FSQConfig | VQConfig = FSQConfig()
    image_size: int = 64
    base_channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 1, 1)
    res_blocks: int = 0
    decoder_channels: int = 128
    decoder_blocks: int = 2
    detail: float = 8.0
    caption: float = 0.0
    words: int = 512
    shift: int = 0
    mirror: bool = True

    @property
    def stride(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class UnifiedConfig:
    """A causal transformer over one vocabulary of text and image ids.

    tokenizer: folder of a trained image tokenizer. text_vocabulary: size of the BPE. hidden is the
    SwiGLU's width. qk_norm, z_loss and dropout are Chameleon's stabilisers; image_weight scales
    the loss of image ids against text: a picture has 64 of them and an answer two, which would
    otherwise hardly count. share_codes: image codes train with what they have in common
    (unified/code_sharing.py). local_heads: some heads start by looking at neighbouring codes
    (unified/local_heads.py). rope_theta: small, as a picture's neighbours are near.
    drop_condition: fraction of drawings trained without their
    text, for classifier-free guidance.
    """

    tokenizer: str | None = None
    text_vocabulary: int = 400
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    hidden: int = 512
    qk_norm: bool = True
    z_loss: float = 1e-5
    dropout: float = 0.0
    image_weight: float = 0.1
    share_codes: bool = True
    local_heads: bool = True
    drop_condition: float = 0.1
    rope_theta: float = 100.0
    max_length: int = 1024
