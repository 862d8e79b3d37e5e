"""The independent classifier that judges drawn images; it has never seen a drawing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import IGNORE
from chiasm.core.device import model_device, moved_tensor
from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.protocols import Cost, Loss, Parts
from chiasm.core.sample import Sample

WIDTHS = (16, 32, 64, 96)
Attributes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class JudgeBatch:
    """pixels [N 3 H W] float32 in [-1, 1]; labels: attribute -> [N] int64, IGNORE where unknown."""

    pixels: Tensor
    labels: dict[str, Tensor]


class Judge(nn.Module):
    """A small convolutional network with one head an attribute; satisfies core.protocols.Trainable.

    attributes: name -> the values it tells apart. size: edge in pixels of what it looks at,
    divisible by 8. Its weights and features are its own: no model it judges shares them.
    """

    def __init__(self, attributes: Attributes, size: int = 64):
        super().__init__()
        if size % 8 or size < 8:
            raise ValueError(f"the judge's image size must be divisible by 8, got {size}")
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.size = size
        stages = [_stage(a, b) for a, b in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)]
        self.features = nn.Sequential(*stages)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * WIDTHS[-1], len(v)) for name, v in self.attributes.items()}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels [N 3 H W] in [-1, 1] -> attribute -> logits [N values]."""
        x = self.features(pixels)
        # The mean says how much of a feature there is, the maximum whether it is anywhere: colour
        # of a small shape needs the second.
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}

    def loss(self, batch: JudgeBatch) -> Loss:
        """Cross entropy summed over images and known attributes; the count is images."""
        logits = self(batch.pixels)
        parts: Parts = {}
        total = batch.pixels.new_zeros(())
        for name, target in batch.labels.items():
            one = F.cross_entropy(logits[name], target, ignore_index=IGNORE, reduction="sum")
            total = total + one
            parts[name] = (one.detach(), float((target != IGNORE).sum()))
        return Loss(total, len(batch.pixels), parts)

    def groups(self) -> dict[str, nn.Module]:
        return {"judge": self}

    def blocks(self) -> list[nn.Module]:
        return list(self.features)

    def cost(self, batch: JudgeBatch) -> Cost:
        N, _, H, W = batch.pixels.shape
        macs = sum(p.numel() for p in self.heads.parameters() if p.dim() == 2)
        for conv in (m for m in self.features.modules() if isinstance(m, nn.Conv2d)):
            H, W = (H + 1) // 2, (W + 1) // 2
            macs += conv.weight.numel() * H * W
        return Cost(3 * 2.0 * macs * N, tokens=0, images=N)

    @torch.no_grad()
    def predict(self, images: Sequence[PIL.Image.Image], batch: int = 256) -> list[dict[str, str]]:
        """What it sees in each image: attribute -> value. Other sizes are resized to its own."""
        if not images:
            return []
        was_training = self.training
        self.eval()
        pixels = _levels(images, self.size)
        found: dict[str, list[str]] = {name: [] for name in self.attributes}
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch].to(model_device(self))
            for name, logits in self(_scale(part)).items():
                found[name] += [self.attributes[name][i] for i in logits.argmax(1).tolist()]
        self.train(was_training)
        return [{name: found[name][i] for name in found} for i in range(len(pixels))]

    def save(self, path: Path) -> None:
        """One safetensors file that load() alone can read back."""
        record = {"attributes": json.dumps(self.attributes), "size": str(self.size)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path, record)

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Raises CheckpointError naming the file."""
        try:
            with safe_open(path, "pt") as file:
                record = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            judge = cls(json.loads(record["attributes"]), int(record["size"]))
            judge.load_state_dict(tensors)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: not a saved judge: {reason}; train it again") from None
        return judge.eval()


def _stage(channels: int, width: int) -> nn.Sequential:
    """Halves height and width."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def train_judge(
    samples: Sequence[Sample],
    attributes: Attributes,
    *,
    steps: int = 350,
    seconds: float | None = None,
    seed: int = 0,
    size: int = 64,
    batch: int = 64,
    peak: float = 4e-3,
    device: torch.device | None = None,
) -> Judge:
    """A judge trained on the first image of each sample and its labels meta[attribute].

    Ends after `steps`, or earlier so as to spend `seconds`; the learning rate follows whichever is
    nearer its end. Without `seconds` the result depends on the seed alone. An attribute that is
    None or missing is left out of that image's loss. device: where it is trained and stays
    (default: the CPU). Raises DataError when nothing is labelled or a label is unknown.
    """
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(attributes, size).train().to(device)
    pixels, labels = _labelled(samples, judge)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=peak, weight_decay=1e-3)
    random = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for step, rows in zip(range(steps), _rows(len(pixels), batch, random), strict=False):
        spent = (time.perf_counter() - began) / seconds if seconds else 0.0
        if spent >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak * _one_cycle(max(step / steps, spent))
        moved = _augment(pixels[rows], random, shift=size // 16)
        chosen = {name: moved_tensor(all_[rows], device) for name, all_ in labels.items()}
        loss = judge.loss(JudgeBatch(_scale(moved_tensor(moved, device)), chosen))
        optimizer.zero_grad(set_to_none=True)
        (loss.sum / loss.count).backward()
        optimizer.step()
    return judge.eval()


def judge_accuracy(judge: Judge, samples: Sequence[Sample]) -> dict[str, float]:
    """Agreement with the labels of real images: each attribute over the images where it is
    known, joint over those (n) where all are. Raises DataError when no image has all labels."""
    kept = [s for s in samples if s.images and any(s.meta.get(a) for a in judge.attributes)]
    seen = judge.predict([sample.images[0].load() for sample in kept])
    right = [
        {a: one[a] == s.meta[a] for a in judge.attributes if s.meta.get(a)}
        for s, one in zip(kept, seen, strict=True)
    ]
    full = [all(row.values()) for row in right if len(row) == len(judge.attributes)]
    if not full:
        raise DataError(
            f"no image has all of: {', '.join(judge.attributes)}; the judge cannot be measured"
        )
    result = {"joint": sum(full) / len(full), "n": float(len(full))}
    for name in judge.attributes:
        known = [row[name] for row in right if name in row]
        result[name] = sum(known) / len(known)
    return result


def _labelled(samples: Sequence[Sample], judge: Judge) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixel levels [N 3 S S] uint8 and labels of the samples that have an image and a label."""
    kept = [s for s in samples if s.images and any(s.meta.get(a) for a in judge.attributes)]
    if not kept:
        raise DataError(
            f"none of {len(samples)} samples has an image labelled with "
            f"{' or '.join(judge.attributes)}"
        )
    labels = {}
    for name, values in judge.attributes.items():
        unknown = [s for s in kept if s.meta.get(name) and s.meta[name] not in values]
        if unknown:
            raise DataError(
                f"{unknown[0].where}: {name} '{unknown[0].meta[name]}' is not one of "
                f"{', '.join(values)}"
            )
        labels[name] = torch.tensor(
            [values.index(s.meta[name]) if s.meta.get(name) else IGNORE for s in kept]
        )
    return _levels([s.images[0].load() for s in kept], judge.size), labels


def _levels(images: Sequence[PIL.Image.Image], size: int) -> Tensor:
    """[N 3 S S] uint8, so that a whole data set of small images fits in memory."""
    fitted = [p if p.size == (size, size) else p.resize((size, size)) for p in images]
    arrays = np.stack([np.asarray(p.convert("RGB")) for p in fitted])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def _scale(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1.0


def _rows(count: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row numbers, each epoch in a new order."""
    while True:
        order = torch.randperm(count, generator=random)
        yield from order[: max(batch, count // batch * batch)].split(batch)


def _augment(levels: Tensor, random: torch.Generator, shift: int) -> Tensor:
    """Each image moved by up to `shift` pixels, edges repeated, and mirrored half of the time."""
    N, _, H, W = levels.shape
    move = torch.randint(-shift, shift + 1, (2, N, 1), generator=random)
    rows = (torch.arange(H) - move[0]).clamp(0, H - 1)
    columns = (torch.arange(W) - move[1]).clamp(0, W - 1)
    mirrored = torch.rand(N, 1, generator=random) < 0.5
    columns = torch.where(mirrored, W - 1 - columns, columns)
    image = torch.arange(N)[:, None, None]
    return levels.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _one_cycle(done: float) -> float:
    """Up over the first fifth, then down along a cosine to 0."""
    return done / 0.2 if done < 0.2 else 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8))
