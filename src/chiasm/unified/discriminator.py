"""A patch discriminator, trained in the same steps as the autoencoder it judges.

Both losses are parts of one sum with disjoint gradients: the autoencoder's passes through a copy of
the discriminator that is held fixed, the discriminator's own sees detached images. So the common
loop needs neither a second optimiser nor a second pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from chiasm.nn.norm import GroupNorm


class Discriminator(nn.Module):
    """Is each patch real? [N 3 H W] -> logits [N 1 H/8 W/8] (PatchGAN, 1611.07004, section 3.2.2,
    with GroupNorm: what is said of an image must not depend on its batch).

    start: training batches before it takes part; `seen` counts them and is saved with the run.
    """

    seen: Tensor

    def __init__(self, start: int = 0, channels: int = 64):
        super().__init__()
        self.start = start
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._started = False
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(2):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, 2, 1),
                GroupNorm(32, 2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        self.judge = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.judge(pixels)

    @property
    def active(self) -> bool:
        # Read until it is true, and never again: reading waits for the device.
        self._started = self._started or int(self.seen) >= self.start
        return self._started

    def fooled(self, drawn: Tensor) -> Tensor:
        """The autoencoder's loss, scalar: minus the mean verdict. No gradient for the judge."""
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        return -functional_call(self, fixed, (drawn,)).float().mean()

    def hinge(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """The discriminator's own loss, scalar (Lim & Ye, 1705.02894). No gradient for the
        autoencoder."""
        real, false = self(pixels).float(), self(drawn.detach()).float()
        return (F.relu(1 - real).mean() + F.relu(1 + false).mean()) / 2


def adaptive_weight(restored: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """|gradient of the reconstruction| / |gradient of the verdict| at the weight that writes the
    pixels (VQGAN, 2012.09841, equation 7): neither drowns the other. At most 1e4; 1 where that
    weight does not train."""
    if not (last.requires_grad and restored.requires_grad):
        return restored.new_ones(())
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (restored, fooled)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()
