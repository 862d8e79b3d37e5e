"""The image tokenizer: an autoencoder with a discrete bottleneck."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import ImageBatch
from chiasm.core.device import moved_tensor
from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Cost, Loss, Parts
from chiasm.nn.eval_mode import evaluating
from chiasm.nn.flops import (
    attention_flops,
    encoder_flops,
    is_trained,
    matrix_parameters,
    mixing_passes,
    passes,
)
from chiasm.nn.norm import GroupNorm
from chiasm.unified.caption_reader import CaptionReader
from chiasm.unified.code_meter import CodeMeter
from chiasm.unified.config import AutoencoderConfig
from chiasm.unified.discriminator import Discriminator, adaptive_weight
from chiasm.unified.perceptual import Perceptual
from chiasm.unified.quantizers import build_quantizer
from chiasm.unified.quantizers.base import code_counts
from chiasm.unified.stock_networks import NoDecoder, stock_networks
from chiasm.unified.vit_networks import ViTDecoder, ViTEncoder


def to_pixels(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """patches [N·h·w, 3·p·p] of images with one grid -> [N 3 h·p w·p]."""
    h, w = grid
    tiles = patches.view(-1, h, w, 3, size, size)
    pixels = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, h * size, w * size)
    return pixels.contiguous(memory_format=torch.channels_last)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with GroupNorm and SiLU before each (taming-transformers' shape)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(32, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.nin_shortcut(x) + y


class Downsample(nn.Module):
    """Stride-2 convolution padded on the right and bottom, as the published encoders."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Encoder(nn.Module):
    """[N 3 H W] -> [N latent H/stride W/stride], the layers of ChameleonVQVAE's encoder without
    attention, in its order."""

    def __init__(self, config: AutoencoderConfig, latent: int):
        super().__init__()
        channels = config.base_channels
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        levels = []
        for number, multiplier in enumerate(config.multipliers):
            blocks = []
            for _ in range(config.res_blocks):
                blocks.append(ResBlock(channels, config.base_channels * multiplier))
                channels = config.base_channels * multiplier
            last = number == len(config.multipliers) - 1
            levels.append(nn.Sequential(*blocks, *([] if last else [Downsample(channels)])))
        self.down = nn.ModuleList(levels)
        self.mid = nn.Sequential(ResBlock(channels, channels), ResBlock(channels, channels))
        self.norm_out = GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """[N latent h w] -> [N 3 h·stride w·stride].

    Most of the work is done on the code grid and at twice its resolution, where it is cheap;
    sub-pixel convolutions bring the rest (Shi et al., 1609.05158)."""

    def __init__(self, config: AutoencoderConfig, latent: int):
        super().__init__()
        wide, narrow = config.decoder_channels, config.decoder_channels // 2
        rest = config.stride // 2
        self.conv_in = nn.Conv2d(latent, wide, 3, padding=1)
        self.coarse = nn.Sequential(*(ResBlock(wide, wide) for _ in range(config.decoder_blocks)))
        self.up = nn.Sequential(nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2))
        self.fine = nn.Sequential(*(ResBlock(narrow, narrow) for _ in range(config.decoder_blocks)))
        self.norm_out = GroupNorm(32, narrow, eps=1e-6)
        self.conv_out = nn.Sequential(
            nn.Conv2d(narrow, 3 * rest * rest, 3, padding=1), nn.PixelShuffle(rest)
        )

    @property
    def last(self) -> Tensor:
        """The weight that writes the pixels."""
        return self.conv_out[0].weight  # type: ignore[return-value]

    def forward(self, z: Tensor) -> Tensor:
        x = self.up(self.coarse(self.conv_in(z)))
        return self.conv_out(F.silu(self.norm_out(self.fine(x))))


class Autoencoder(nn.Module):
    """Images to codes and back; trained by the common loop on the error of the pixels, which
    counts more where there is something to see, and on what `watch` and a discriminator add."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        latent = self.quantizer.width
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.hf_networks is not None:
            self.encoder, decoder = stock_networks(config.hf_networks, latent)
            self.decoder = decoder or (
                Decoder(config, latent) if config.decoder_channels else NoDecoder()
            )
        elif config.vit is None:
            self.encoder, self.decoder = Encoder(config, latent), Decoder(config, latent)
        else:
            self.encoder = ViTEncoder(config.vit, config.image_size, latent)
            self.decoder = ViTDecoder(config.vit, config.image_size, latent)
        self.reader = (
            CaptionReader(latent, config.caption_vocab) if config.caption_loss_weight else None
        )
        self.discriminator = Discriminator(config.adversarial_start) if config.adversarial else None
        self.perceptual: Perceptual | None = None
        self.meter = CodeMeter(self.quantizer.codes, config.usage_floor)
        if config.hf_networks is None:  # Emu3's convolutions in time have no such layout
            # Convolutions of few channels run about twice as fast in this layout on a CPU.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def watch(self, encoder: nn.Module) -> None:
        """Whose features the perceptual loss compares; the encoder stays as it is."""
        self.perceptual = Perceptual(encoder)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [N 3 H W] in [-1, 1], H and W multiples of the stride -> codes [N h w·depth]."""
        return self.quantizer(self.encoder(pixels)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes [N h w·depth] -> pixels [N 3 H W], clipped to [-1, 1]."""
        return self.decoder(self.quantizer.lookup(codes).movedim(-1, 1)).clamp(-1, 1)

    def loss(self, batch: ImageBatch) -> Loss:
        if self.config.perceptual and self.perceptual is None:
            raise ConfigError("model.perceptual needs features to compare: call watch(encoder)")
        total = batch.image_patches.new_zeros(())
        used = torch.zeros(self.quantizer.codes, dtype=torch.long, device=total.device)
        sums: dict[str, Tensor] = {"mse": total.detach(), "caption": total.detach()}
        for rows, pixels in self._by_grid(batch):
            n = len(pixels)
            quantized = self.quantizer(self.encoder(pixels))
            drawn = self.decoder(quantized.values)
            restored = self._restored(drawn, pixels, sums)
            total = total + (restored + quantized.penalty) * n
            used += code_counts(quantized.codes, len(used))
            if self.discriminator is not None and self.discriminator.active:
                total = total + self._contest(restored, drawn, pixels, sums) * n
            if self.reader is not None and batch.texts is not None:
                assert batch.lengths is not None
                assert batch.match is not None
                match = batch.match[moved_tensor(rows, total.device)]
                read = self.reader.loss(quantized.values, batch.texts, batch.lengths, match).sum()
                total = total + self.config.caption_loss_weight * read
                sums["caption"] = sums["caption"] + read.detach()
        count = len(batch.image_grids)
        parts: Parts = {name: (value, float(count)) for name, value in sums.items()}
        parts["codes_in_batch"] = ((used > 0).sum(), 1.0)
        if self.training:
            parts |= self.meter.add(used)
            if self.discriminator is not None:
                self.discriminator.seen += 1
        return Loss(total, count, parts)

    def observe(self, means: dict[str, float]) -> None:
        """Told by the training loop what the parts of a step's loss were."""
        self.meter.watch(means)

    def _restored(self, drawn: Tensor, pixels: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """How far the drawn images are from the pixels, mean over images."""
        squared = (drawn - pixels).square()
        error = squared if self.config.pixel_loss == "l2" else (drawn - pixels).abs()
        restored = (error * (1 + self.config.edge_loss_weight * details(pixels))).mean()
        _add(sums, "mse", squared.mean() * len(pixels))
        if self.perceptual is not None and self.config.perceptual:
            apart = self.perceptual(drawn, pixels)
            restored = restored + self.config.perceptual * apart.mean()
            _add(sums, "perceptual", apart.sum())
        return restored

    def _contest(
        self, restored: Tensor, drawn: Tensor, pixels: Tensor, sums: dict[str, Tensor]
    ) -> Tensor:
        """What the discriminator makes of the images, both sides' losses, mean over images."""
        assert self.discriminator is not None
        fooled = self.discriminator.fooled(drawn)
        weight = adaptive_weight(restored, fooled, self.decoder.last)  # type: ignore[arg-type]
        hinge = self.discriminator.hinge(pixels, drawn)
        for name, value in (("fooled", fooled), ("hinge", hinge), ("adaptive_weight", weight)):
            _add(sums, name, value * len(pixels))
        return self.config.adversarial * weight * fooled + hinge

    def groups(self) -> dict[str, nn.Module]:
        encoder = nn.ModuleList(filter(None, [self.encoder, self.quantizer, self.reader]))
        groups: dict[str, nn.Module] = {"encoder": encoder, "decoder": self.decoder}
        return groups | ({"discriminator": self.discriminator} if self.discriminator else {})

    def blocks(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]

    def cost(self, batch: ImageBatch) -> Cost:
        pixels = len(batch.image_patches) * self.config.stride**2
        trained = {name: is_trained(part) for name, part in self.groups().items()}
        encoding, decoding = trained["encoder"], trained["decoder"]
        forwards = passes(encoding, False), passes(decoding, encoding)
        shape = self._flops_per_pixel()
        parts = {
            "encoder": (forwards[0] * shape["encoder"] + min(2, forwards[0]) * shape["first"])
            * pixels,
            "decoder": forwards[1] * shape["decoder"] * pixels,
            "quantizer": self.quantizer.flops(len(batch.image_patches)),
            **self._judges_cost(batch, shape["discriminator"] * pixels),
        }
        if self.config.vit is not None:
            mixing = attention_flops(
                batch.image_grids.prod(1), self.config.vit.width, self.config.vit.layers
            )
            parts["encoder"] += mixing_passes(encoding) * mixing
            parts["decoder"] += mixing_passes(encoding or decoding) * mixing
        return Cost(sum(parts.values()), len(batch.image_patches), len(batch.image_grids), parts)

    def _judges_cost(self, batch: ImageBatch, judging: float) -> dict[str, float]:
        """What the caption's reader, the discriminator (forward: judging) and the perceptual loss
        add. With a discriminator gradients reach the pixels once more, for the adaptive weight."""
        parts, images = {}, len(batch.image_grids)
        again = self.discriminator is not None and self.discriminator.active
        if self.reader is not None and batch.texts is not None:
            each = 2.0 * matrix_parameters(self.reader.each) * len(batch.image_patches)
            parts["reader"] = 3 * (each + 2.0 * matrix_parameters(self.reader.words) * images)
        if again:
            parts["discriminator"] = (2 + 1 + 2 * 3) * judging
        if self.perceptual is not None and self.config.perceptual:
            eye, side = self.perceptual.encoder, self.perceptual.side // self.perceptual.patch
            mixing = sum(
                attention_flops(torch.full((images,), side**2 + t.special), t.config.mixing, 1)
                for t in eye.towers
            )
            counts = torch.full((images,), side**2)
            forward = sum(encoder_flops(t, counts, False) for t in eye.towers)
            # Both images forward; backward to one: matrices once, attention twice.
            parts["perceptual"] = (3 + again) * forward + (1 + again) * mixing
        return parts

    def _by_grid(self, batch: ImageBatch) -> list[tuple[Tensor, Tensor]]:
        """The batch's images as pixel tensors, one a resolution, each with its rows."""
        counts = batch.image_grids.prod(1).tolist()
        patches = batch.image_patches.split(counts)
        rows: dict[tuple[int, int], list[int]] = {}
        for row, (h, w) in enumerate(batch.image_grids.tolist()):
            rows.setdefault((h, w), []).append(row)
        size = self.config.stride
        return [
            (torch.tensor(own), to_pixels(torch.cat([patches[i] for i in own]), grid, size))
            for grid, own in rows.items()
        ]

    def _flops_per_pixel(self) -> dict[str, float]:
        """Forward, by part: two operations a weight and output position of every convolution and
        linear layer, over the input's pixels; `first` is the layer that sees the pixels. Measured
        once on one image because strides decide the positions."""
        if hasattr(self, "_shape_cost"):
            return self._shape_cost
        total = {"first": 0.0, "encoder": 0.0, "decoder": 0.0, "discriminator": 0.0}
        judge = self.discriminator or nn.Identity()

        def count(layer: nn.Module, output: Any, part: str) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            part = "encoder" if part == "first" and total["first"] else part
            total[part] += 2.0 * layer.weight.numel() * output.numel() / layer.weight.shape[0]

        handles = [
            m.register_forward_hook(lambda m, _, output, part=part: count(m, output, part))
            for part, network in (
                ("first", self.encoder),
                ("decoder", self.decoder),
                ("discriminator", judge),
            )
            for m in network.modules()
            if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        side = 4 * self.config.stride
        device = next(self.parameters()).device
        low = any(p.dtype == torch.bfloat16 for p in self.parameters())  # frozen in this stage
        in_both = torch.autocast(device.type, torch.bfloat16, enabled=low)
        with torch.no_grad(), evaluating(self), in_both:
            z = self.encoder(torch.zeros(1, 3, side, side, device=device))
            judge(self.decoder(self.quantizer(z).values))
        for handle in handles:
            handle.remove()
        self._shape_cost = {part: flops / side**2 for part, flops in total.items()}
        return self._shape_cost


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums.get(name, 0.0) + value.detach()


def details(pixels: Tensor, size: int = 5, threshold: float = 0.05) -> Tensor:
    """[N 3 H W] in [-1, 1] -> [N 1 H W], 1 where a pixel differs from the mean of the size × size
    around it by more than `threshold` (mean over the channels), else 0."""
    around = F.avg_pool2d(pixels, size, 1, size // 2, count_include_pad=False)
    return ((pixels - around).abs().mean(1, keepdim=True) > threshold).to(pixels.dtype)


@torch.no_grad()
def codebook_use(codes: Tensor, size: int) -> dict[str, float]:
    """code_usage: share of the codebook that occurs; codebook_perplexity: exp of the entropy of
    the codes' frequencies (nats)."""
    frequency = code_counts(codes.cpu(), size).double()
    p = frequency / frequency.sum()
    entropy = -(p[p > 0] * p[p > 0].log()).sum()
    return {
        "code_usage": float((frequency > 0).double().mean()),
        "codebook_perplexity": float(entropy.exp()),
    }
