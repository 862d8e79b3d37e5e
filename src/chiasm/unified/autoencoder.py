"""The image tokenizer: a convolutional autoencoder with a discrete bottleneck."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import PictureBatch
from chiasm.core.protocols import Cost, Loss
from chiasm.unified.config import AutoencoderConfig
from chiasm.unified.quantizers import build_quantizer


def to_pixels(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """patches [N·h·w, 3·p·p] of pictures with one grid -> [N 3 h·p w·p]."""
    h, w = grid
    tiles = patches.view(-1, h, w, 3, size, size)
    pixels = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, h * size, w * size)
    return pixels.contiguous(memory_format=torch.channels_last)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with GroupNorm and SiLU before each (taming-transformers' shape)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outputs, eps=1e-6)
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
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class PatchEncoder(nn.Module):
    """[N 3 H W] -> [N latent H/stride W/stride], each code from its own patch alone.

    A code then means the same wherever it stands and whatever is around it, which a transformer
    learns from far fewer pictures (LOG.md, "Local codes"); the decoder still sees neighbours.
    """

    def __init__(self, config: AutoencoderConfig, latent: int):
        super().__init__()
        self.stride, width = config.stride, config.patch_width
        self.embed = nn.Linear(3 * config.stride**2, width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(config.patch_layers)
        )
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latent))

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pixels, self.stride).permute(0, 2, 3, 1)
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.project(x).permute(0, 3, 1, 2)


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
        self.norm_out = nn.GroupNorm(32, narrow, eps=1e-6)
        self.conv_out = nn.Sequential(
            nn.Conv2d(narrow, 3 * rest * rest, 3, padding=1), nn.PixelShuffle(rest)
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.up(self.coarse(self.conv_in(z)))
        return self.conv_out(F.silu(self.norm_out(self.fine(x))))


class BagOfCodes(nn.Module):
    """values [N C h w] -> embedding [N D]: each code is embedded by itself, then averaged.

    What this can read, one attention layer can read: codes trained so carry what is in the picture
    and not only how it looks (the idea of VILA-U, 2409.04429, with a teacher in place of texts).
    """

    def __init__(self, latent: int, embedding: int, width: int = 128):
        super().__init__()
        self.code = nn.Sequential(nn.Linear(latent, width), nn.GELU(), nn.Linear(width, width))
        self.project = nn.Sequential(nn.GELU(), nn.Linear(width, embedding))

    def forward(self, values: Tensor) -> Tensor:
        return self.project(self.code(values.permute(0, 2, 3, 1)).mean((1, 2)))


class Autoencoder(nn.Module):
    """Pictures to codes and back; trained by the common loop on the squared error, and, with a
    teacher, on predicting its embedding of the picture from the bag of codes."""

    teacher: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        encoder = PatchEncoder if config.encoder == "patch" else Encoder
        self.encoder = encoder(config, self.quantizer.width)
        self.decoder = Decoder(config, self.quantizer.width)
        # Convolutions of few channels run about twice as fast in this layout on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [N 3 H W] in [-1, 1], H and W multiples of the stride -> codes [N h w]."""
        return self.quantizer(self.encoder(pixels)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes [N h w] -> pixels [N 3 H W], clipped to [-1, 1]."""
        return self.decoder(self.quantizer.lookup(codes).movedim(-1, 1)).clamp(-1, 1)

    def learn_from(self, teacher: Callable[[Tensor], Tensor], embedding: int) -> None:
        """Add the semantic loss. teacher: pixels [N 3 H W] -> unit vectors [N embedding]; it is
        not part of the model, and the head that reads the bag of codes is not saved with it."""
        self.teacher = teacher
        self.semantics = BagOfCodes(self.quantizer.width, embedding)

    def loss(self, batch: PictureBatch) -> Loss:
        total = batch.patches.new_zeros(())
        used, count, squared, cosine = set(), len(batch.grids), 0.0, 0.0
        for pixels in self._by_grid(batch):
            quantized = self.quantizer(self.encoder(pixels))
            error = F.mse_loss(self.decoder(quantized.values), pixels)
            total = total + (error + quantized.penalty) * len(pixels)
            if self.teacher is not None:
                likeness = self._likeness(quantized.values, pixels)
                total = total + self.config.semantic_weight * (1 - likeness).sum()
                cosine += likeness.sum().item()
            used.update(quantized.codes.unique().tolist())
            squared += error.item() * len(pixels)
        parts = {"mse": (squared, count), "codes_in_batch": (len(used), 1)}
        return Loss(
            total,
            count,
            parts | ({"semantic_cosine": (cosine, count)} if self.teacher is not None else {}),
        )

    def _likeness(self, values: Tensor, pixels: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher(pixels)
        return F.cosine_similarity(self.semantics(values), wanted)

    def groups(self) -> dict[str, nn.Module]:
        encoder = [self.encoder, self.quantizer]
        if self.teacher is not None:
            encoder.append(self.semantics)
        return {"encoder": nn.ModuleList(encoder), "decoder": self.decoder}

    def blocks(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]

    def cost(self, batch: PictureBatch) -> Cost:
        forward = self._forward_flops_per_pixel() * len(batch.patches) * self.config.stride**2
        return Cost(3 * forward, len(batch.patches), len(batch.grids))

    def _by_grid(self, batch: PictureBatch) -> list[Tensor]:
        """The batch's pictures as pixel tensors, one a resolution."""
        counts = batch.grids.prod(1).tolist()
        groups: dict[tuple[int, int], list[Tensor]] = {}
        for patches, (h, w) in zip(batch.patches.split(counts), batch.grids.tolist(), strict=True):
            groups.setdefault((h, w), []).append(patches)
        size = self.config.stride
        return [to_pixels(torch.cat(rows), grid, size) for grid, rows in groups.items()]

    def _forward_flops_per_pixel(self) -> float:
        """Two operations a weight and output position of every convolution, over the input's
        pixels; measured once on one picture because strides decide the positions."""
        if not hasattr(self, "_flops_per_pixel"):
            total = 0.0

            def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
                nonlocal total
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                total += 2.0 * layer.weight.numel() * output.numel() / layer.weight.shape[0]

            handles = [
                m.register_forward_hook(count)
                for m in self.modules()
                if isinstance(m, nn.Conv2d | nn.Linear)
            ]
            side = 4 * self.config.stride
            training = self.training
            device = next(self.parameters()).device
            with torch.no_grad():
                self.eval()
                self.decoder(
                    self.quantizer(
                        self.encoder(torch.zeros(1, 3, side, side, device=device))
                    ).values
                )
            self.train(training)
            for handle in handles:
                handle.remove()
            self._flops_per_pixel = total / side**2
        return self._flops_per_pixel


@torch.no_grad()
def codebook_use(codes: Tensor, size: int) -> dict[str, float]:
    """code_usage: share of the codebook that occurs; codebook_perplexity: exp of the entropy of
    the codes' frequencies (nats)."""
    frequency = torch.bincount(codes.reshape(-1), minlength=size).double()
    p = frequency / frequency.sum()
    entropy = -(p[p > 0] * p[p > 0].log()).sum()
    return {
        "code_usage": float((frequency > 0).double().mean()),
        "codebook_perplexity": float(entropy.exp()),
    }
