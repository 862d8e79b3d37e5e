"""What goes wrong before a run does, measured now and then on one micro-batch.

monitor/largest_logit       of all attention layers; beyond about 1e4 runs diverge, and long before
                            the softmax is one-hot (Wortsman et al., 2309.14322, section 3.1.1)
monitor/output_rms          of the last block, before the last norm: its slow growth foretells the
                            late divergence of mixed modalities (Chameleon, 2405.09818, section 2.3)
monitor/grad_norm/NAME      of the part of the loss that a modality has, all trained weights
monitor/grad_cosine         between two modalities: below 0 they pull against each other
monitor/update_ratio/GROUP  what the optimiser changes over what is there, |Δw| / |w|

logZ (its square) and the loss of each modality are in every line of metrics.jsonl anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.nn.attention import AttentionPlan, largest_logit
from chiasm.nn.block import Attention
from chiasm.train.optim import Optimizers


class Monitor:
    """One look: `before` the optimiser steps and `after`. Gradients and buffers are left alone."""

    def __init__(self, model: Any, optimizer: Optimizers):
        self.model, self.optimizer = model, optimizer
        self.found: dict[str, float] = {}

    def before(self, batch: Any) -> None:
        training = self.model.training
        self.model.eval()  # dropout off, and no codebook follows the batch
        try:
            self._look(batch)
        finally:
            self.model.train(training)
        self.weights = [
            (group["name"], p, p.detach().clone())
            for group in self.optimizer.groups
            for p in group["params"]
        ]

    def after(self) -> dict[str, float]:
        """Everything found, by name."""
        squares: dict[str, list[Tensor]] = {}
        for name, now, was in self.weights:
            none = was.new_zeros(())
            sums = squares.setdefault(name, [none, none])
            sums[0] = sums[0] + (now.detach() - was).square().sum()
            sums[1] = sums[1] + was.square().sum()
        for name, (change, size) in squares.items():
            self.found[f"monitor/update_ratio/{name}"] = float(
                (change / size.clamp(min=1e-30)).sqrt()
            )
        return self.found

    def _look(self, batch: Any) -> None:
        logits: list[Tensor] = []
        outputs: list[Tensor] = []

        def watch(q: Tensor, k: Tensor, layout: AttentionPlan) -> None:
            logits.append(largest_logit(q, k, layout))

        def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
            first = output if isinstance(output, Tensor) else next(iter(output))
            outputs.append(first.detach().float().square().mean().sqrt())

        layers = [m for m in self.model.modules() if isinstance(m, Attention)]
        handle = self.model.blocks()[-1].register_forward_hook(keep)
        for layer in layers:
            layer.watch = watch
        try:
            self._by_modality(batch)
        finally:
            handle.remove()
            for layer in layers:
                layer.watch = None
        if logits:
            self.found["monitor/largest_logit"] = float(torch.stack(logits).max())
        if outputs:
            self.found["monitor/output_rms"] = float(outputs[-1])

    def _by_modality(self, batch: Any) -> None:
        """Gradients of every modality's part of the loss, where the model tells them apart."""
        if not hasattr(self.model, "by_modality"):
            with torch.no_grad():
                self.model.loss(batch)
            return
        owned = [p for group in self.optimizer.groups for p in group["params"]]
        gradients: dict[str, list[Tensor]] = {}
        for name, loss in self.model.by_modality(batch).items():
            own = torch.autograd.grad(loss, owned, retain_graph=True, allow_unused=True)
            gradients[name] = [
                torch.zeros_like(p) if g is None else g for g, p in zip(own, owned, strict=True)
            ]
        norms = {name: _dot(own, own) ** 0.5 for name, own in gradients.items()}
        for name, norm in norms.items():
            self.found[f"monitor/grad_norm/{name}"] = norm
        for a, b in combinations(gradients, 2):
            size = norms[a] * norms[b]
            if size:
                self.found["monitor/grad_cosine"] = _dot(gradients[a], gradients[b]) / size


def said(line: Mapping[str, float]) -> str:
    """The monitors of a log line in a few characters for the live view, "" without any."""
    short = {"monitor/largest_logit": "logit", "monitor/output_rms": "out"}
    return "".join(f"  {word} {line[key]:.3g}" for key, word in short.items() if key in line)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    # Added in float64 in main memory: not every accelerator has it.
    sums = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)])
    return float(sums.cpu().double().sum())
