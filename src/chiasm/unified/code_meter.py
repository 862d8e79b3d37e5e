"""Is the codebook alive? Counted over the last batches of training, with an alarm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console
from torch import Tensor, nn

from chiasm.core.protocols import Parts


class CodeMeter(nn.Module):
    """usage: share of the codes chosen in the last `window` batches; dead: how many were not;
    perplexity: exp of the entropy of their frequencies (nats), which forget at the same pace.

    A code counts as used until it has been idle for a whole window, so the numbers mean something
    from then on; after a resume they start anew. Usage below `floor` prints one line, and another
    only after it has recovered.
    """

    idle: Tensor
    frequency: Tensor

    def __init__(self, codes: int, floor: float, window: int = 100):
        super().__init__()
        self.floor, self.window, self.alarmed = floor, window, False
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.long), persistent=False)
        self.register_buffer("frequency", torch.zeros(codes), persistent=False)

    @torch.no_grad()
    def add(self, count: Tensor) -> Parts:
        """Take in how often a batch chose each code [codes]; the numbers as parts of a Loss."""
        self.idle.add_(1).masked_fill_(count > 0, 0)
        self.frequency.mul_(1 - 1 / self.window).add_(count)
        p = self.frequency / self.frequency.sum().clamp(min=1e-9)
        dead = (self.idle >= self.window).sum()
        return {
            "code_usage": (1 - dead / len(self.idle), 1.0),
            "dead_codes": (dead, 1.0),
            "codebook_perplexity": ((-torch.special.xlogy(p, p).sum()).exp(), 1.0),
        }

    def watch(self, means: Mapping[str, float]) -> None:
        """Raise the alarm if the numbers of `add`, once they are known, are bad."""
        if "dead_codes" not in means:
            return
        usage, dead = means["code_usage"], round(means["dead_codes"])
        if usage < self.floor and not self.alarmed:
            Console(stderr=True).print(
                f"warning: the codebook collapses: {dead} of {len(self.idle)} codes were not used "
                f"in {self.window} batches (usage {usage:.1%} < model.usage_floor "
                f"{self.floor:.1%}); lower the rate or take fewer codes",
                soft_wrap=True,
                highlight=False,
            )
        self.alarmed = usage < self.floor
