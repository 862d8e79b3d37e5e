"""The networks of published image tokenizers, by transformers' classes, on both sides of our
bottleneck: a checkpoint of theirs becomes an autoencoder here, and can be trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from chiasm.core.errors import ConfigError, NotGenerativeError
from chiasm.unified.config import StockNetworks


def stock_networks(config: StockNetworks, latent: int) -> tuple[nn.Module, nn.Module | None]:
    """(encoder, decoder or None) with fresh weights around codes of width `latent`. Raises
    ConfigError for settings that the class does not take."""
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig

    settings: dict[str, Any] = {**config.settings, "embed_dim": latent}
    try:
        if config.family == "chameleon":
            return ChameleonEncoder(ChameleonVQVAE(ChameleonVQVAEConfig(**settings))), None
        model = Emu3VQVAE(Emu3VQVAEConfig(**settings))
        return Emu3Encoder(model), Emu3Decoder(model)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model.hf_networks.settings: {error}; see {config.family}'s vq_config"
        ) from None


class ChameleonEncoder(nn.Module):
    """[N 3 H W] -> [N width h w]: what is compared with the codebook."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels))


class Emu3Encoder(nn.Module):
    """[N 3 H W] -> [N width h w]. An image is shown as a clip of equal frames that become one."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self.frames = model.config.temporal_downsample_factor

    def forward(self, pixels: Tensor) -> Tensor:
        z = self.encoder(pixels[:, None].expand(-1, self.frames, -1, -1, -1))
        return self.quant_conv(z.movedim(1, 2))[:, :, 0]


class Emu3Decoder(nn.Module):
    """[N width h w] -> [N 3 H W], the first frame of the clip that the decoder writes."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv
        self.frames = model.config.temporal_downsample_factor

    @property
    def last(self) -> Tensor:
        """The weight that writes the pixels."""
        return self.decoder.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        clip = z[:, :, None]
        frames = self.decoder(self.post_quant_conv(clip).movedim(1, 2), clip.movedim(1, 2))
        return frames.unflatten(0, (-1, self.frames))[:, 0]


class NoDecoder(nn.Module):
    """In place of a decoder that was never published."""

    def forward(self, z: Tensor) -> Tensor:
        raise NotGenerativeError(
            "this image tokenizer came without a decoder (Chameleon's class has none); it reads "
            "images and cannot draw them"
        )
