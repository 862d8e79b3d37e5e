"""Rotary position embedding (RoFormer, 2104.09864, section 3.2), half-split as Llama's."""

import torch
from torch import Tensor


def rotation(position: Tensor, size: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [B T 1 size] for integer positions [B T]; size is the head's, even."""
    frequency = theta ** (-torch.arange(0, size, 2, device=position.device).float() / size)
    angle = position[..., None].float() * frequency
    angle = torch.cat([angle, angle], dim=-1)[:, :, None]
    return angle.cos(), angle.sin()


def rotation_2d(
    row: Tensor, column: Tensor, size: int, theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """cos and sin [B T 1 size] for rows and columns [B T]: even-numbered frequencies turn by the
    row, odd ones by the column (axial rotation as in 2403.13298, section 3.1, interleaved so that
    both axes get fast and slow ones). Where both are equal it is `rotation`."""
    frequency = theta ** (-torch.arange(0, size, 2, device=row.device).float() / size)
    even = torch.arange(size // 2, device=row.device) % 2 == 0
    angle = torch.where(even, row[..., None], column[..., None]).float() * frequency
    angle = torch.cat([angle, angle], dim=-1)[:, :, None]
    return angle.cos(), angle.sin()


def signed(sin: Tensor) -> Tensor:
    """sin for x·cos + (x with its halves exchanged)·sin, another way to `rotate`."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B T H D] turned by its position: pairs are (i, i + D/2)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin
