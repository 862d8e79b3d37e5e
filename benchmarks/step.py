"""A training step of the nanoVLM-222M shape against plain transformers modules with a stock loop.

SigLIP-B/16 at 224 pixels, pixel shuffle 2 (49 tokens an image), SmolLM2-135M, all of it trained
from random weights, on the same samples: one image each, text of log-normal length (median 74
tokens, as the mixture "cauldron" of tests/data/test_packing.py), the second half of it supervised.

    ours     chiasm.mllm.model.MLLM on one packed row of at most 768 tokens, filled up as the
             engine does (data/stream.py): every sample attends by itself, logits only where there
             is a target
    stock    SiglipVisionModel, a linear layer and LlamaForCausalLM with their defaults (sdpa), the
             samples laid end to end as transformers' DataCollatorWithFlattening does: position_ids
             tell the samples apart; the model's own labels= loss
    padded   the same modules, every sample a row of its own, padded on the right to the longest,
             with an attention mask

A unit is a sample. All: the same precision (--precision; by default what is faster here), equal
threads, AdamW, gradients clipped at 1. Ours runs as the engine does: AdamW is fused, and freed
memory is kept (core/allocator.py). The peers run as a script of torch's defaults does: AdamW as it
comes, memory as glibc gives it. Every turn is a process of its own, which takes two steps that do
not count, in which it meets memory that it has not touched, and two that do. The three losses
before the first step have to be equal, as the weights are. Encoding and collating are not timed.

Extra keys: what share of this machine's rate of square matrix products ours reaches in fp32 and in
the precision above, counted by the cost model (the tower included, padding and logits nobody needs
not), for this model and for a step of recipes/unified_base.py's shape in rows of the same length.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, LlamaForCausalLM, SiglipVisionModel

from benchmarks.harness import (
    Comparison,
    Precision,
    report,
    result,
    round_to,
    spread_of,
    training_arguments,
)
from chiasm.core.allocator import keep_freed_memory
from chiasm.core.batch import IGNORE, Batch, Encoded
from chiasm.core.vocab import Vocabulary
from chiasm.data.stream import pack_evenly
from chiasm.mllm.config import PixelShuffleConfig
from chiasm.mllm.language import adopt_language
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.nn.peak_flops import gemm_peak
from chiasm.recipes import nanovlm_222m, unified_base
from chiasm.recipes.shapes import LANGUAGE, VISION
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import TowerOptions
from chiasm.vision.patches import patchify
from chiasm.vision.pretrained import adopt_encoder

TOKENS = 768
SIDE, PATCH, SHUFFLE = 224, 16, 2
VISUAL = (SIDE // PATCH // SHUFFLE) ** 2


class Stock(nn.Module):
    """The model as transformers' classes are put together by hand."""

    def __init__(self) -> None:
        super().__init__()
        config = nanovlm_222m.recipe().model
        vision = AutoConfig.for_model(**VISION[config.encoder], vision_use_head=False)
        language = AutoConfig.for_model(**LANGUAGE[config.language_model])
        self.vision = SiglipVisionModel(vision)
        self.projector = nn.Linear(
            vision.hidden_size * SHUFFLE**2, language.hidden_size, bias=False
        )
        self.language = LlamaForCausalLM(language)
        self.image_token = language.vocab_size - 1

    def forward(self, pixels: Tensor, input_ids: Tensor, **rest: Tensor) -> Tensor:
        """The mean loss of images [N 3 H W] and rows of ids."""
        features = self.vision(pixels).last_hidden_state
        side = SIDE // PATCH // SHUFFLE
        squares = features.view(len(pixels), side, SHUFFLE, side, SHUFFLE, -1).transpose(2, 3)
        tokens = self.projector(squares.reshape(len(pixels), VISUAL, -1))
        x = self.language.get_input_embeddings()(input_ids)
        x = x.masked_scatter((input_ids == self.image_token)[..., None], tokens.to(x.dtype))
        return self.language(inputs_embeds=x, use_cache=False, **rest).loss


def ours_of(stock: Stock) -> MLLM:
    """The same weights, another copy of them, put together by this package."""
    parts = copy.deepcopy(stock)
    with tempfile.TemporaryDirectory() as folder:  # says nothing about how images are normalised
        vision = adopt_encoder(parts.vision, folder, TowerOptions(layer=-1, norm=True))
    language = adopt_language(parts.language.model, parts.language.lm_head, "the benchmark's")
    widths = parts.vision.config.hidden_size, parts.language.config.hidden_size
    projector = build_projector(PixelShuffleConfig(SHUFFLE), *widths, 1.0)
    projector.load_state_dict({"proj.weight": parts.projector.weight})
    return MLLM(vision, projector, language, stock.image_token)


def make_samples(image_token: int) -> tuple[list[Encoded], Tensor]:
    """Samples that fill a row of TOKENS, and their images [N 3 H W]."""
    random = np.random.default_rng(0)
    samples: list[Encoded] = []
    images = []
    while True:
        words = int(np.clip(random.lognormal(4.3, 0.9), 8, TOKENS - VISUAL))
        if sum(map(len, samples)) + VISUAL + words > TOKENS:
            return samples, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        pixels = random.uniform(-1, 1, (SIDE, SIDE, 3)).astype(np.float32)
        ids = np.concatenate([np.full(VISUAL, image_token), random.integers(0, image_token, words)])
        targets = np.full(len(ids), IGNORE)
        targets[-words // 2 : -1] = ids[-words // 2 + 1 :]
        place = np.arange(len(ids))
        grid = np.array([[SIDE // PATCH] * 2])
        samples.append(Encoded(ids, targets, place, 0 * ids, place, patchify(pixels, PATCH), grid))
        images.append(pixels)


def labels_of(sample: Encoded) -> Tensor:
    """Targets as transformers wants them: not yet shifted."""
    return torch.from_numpy(np.concatenate([[IGNORE], sample.labels[:-1]]))


def flattened(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """One row, end to end."""
    return {
        "input_ids": torch.cat([torch.from_numpy(s.input_ids) for s in samples])[None],
        "position_ids": torch.cat([torch.from_numpy(s.position_ids) for s in samples])[None],
        "labels": torch.cat([labels_of(s) for s in samples])[None],
    }


def padded(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """A row a sample."""
    longest = max(map(len, samples))
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = torch.from_numpy(sample.input_ids)
        labels[row, : len(sample)] = labels_of(sample)
        mask[row, : len(sample)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def seeded() -> Stock:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Stock()


@dataclass(frozen=True)
class Turn:
    """What one process found. loss: before the first step. seconds: of a step. peak: FLOP/s of
    square products, the best of before and after. flops: of a step, by the cost model; 0 for a
    peer."""

    loss: float
    seconds: float
    peak: float
    flops: float = 0.0


def ours_turn(precision: Precision) -> Turn:
    keep_freed_memory()
    stock = seeded()
    samples, _ = make_samples(stock.image_token)
    batch, model = pack_evenly(samples, TOKENS), ours_of(stock).train()
    del stock
    return timed(model, lambda: _mean(model, batch), precision, True, model.cost(batch).flops)


def peer_turn(name: str, precision: Precision) -> Turn:
    model = seeded().train()
    samples, pixels = make_samples(model.image_token)
    row = {"stock": flattened, "padded": padded}[name](samples)
    return timed(model, lambda: model(pixels, **row), precision, False)


def unified_turn(precision: Precision) -> Turn:
    """A step of unified_base's shape: texts of 128 tokens with an image of 256 codes to draw."""
    keep_freed_memory()
    config = unified_base.recipe().model
    assert isinstance(config, UnifiedConfig)
    vocabulary = Vocabulary(config.text_vocabulary, 512, 0, 1, 2, 3, 4)
    random = np.random.default_rng(0)
    row = []
    for _ in range(TOKENS // 384):
        ids = random.integers(5, config.text_vocabulary, 384)
        ids[128:] = random.integers(vocabulary.first_code, vocabulary.size, 256)
        targets = np.concatenate([np.full(127, IGNORE), ids[128:], [IGNORE]])
        place = np.arange(384)
        row.append(Encoded(ids, targets, place, 0 * ids, place))
    batch, model = pack_evenly(row, TOKENS), Unified(config, vocabulary, 16).train()
    return timed(model, lambda: _mean(model, batch), precision, True, model.cost(batch).flops)


def timed(
    model: nn.Module,
    loss: Callable[[], Tensor],
    precision: Precision,
    fused: bool,
    flops: float = 0.0,
) -> Turn:
    """The last two of four steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused or None)
    peak, losses, ends = _peak(precision), [], []
    for _ in range(4):
        with precision():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.item())
        ends.append(time.perf_counter())
    return Turn(losses[0], (ends[-1] - ends[-3]) / 2, max(peak, _peak(precision)), flops)


def _mean(model: MLLM | Unified, batch: Batch) -> Tensor:
    loss = model.loss(batch)
    return loss.sum / loss.count


def _peak(precision: Precision) -> float:
    gemm_peak.cache_clear()
    return gemm_peak("cpu", precision.dtype)


def apart(turn: Callable[..., Turn], *given: str | Precision) -> Turn:
    """The turn in a process of its own, whose memory is gone afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(turn, *given).result()


def compared(ours: Sequence[Turn], peer: Sequence[Turn], samples: int) -> Comparison:
    """Samples a second."""
    mine, theirs = ([samples / turn.seconds for turn in side] for side in (ours, peer))
    rates = float(np.median(mine)), float(np.median(theirs))
    return Comparison(
        *rates, max(spread_of(mine), spread_of(theirs)), *(samples / rate for rate in rates)
    )


def shares(precision: Precision, ours: Sequence[Turn]) -> dict[str, float]:
    """What both routes reach of the machine's products in a precision; ours: the MLLM's turns."""
    sides = {
        "mllm": ours or [apart(ours_turn, precision)],
        "unified": [apart(unified_turn, precision)],
    }
    peak = max(turn.peak for side in sides.values() for turn in side)
    return {
        f"{name}_mfu_measured_{precision.name}": round_to(
            float(np.median([turn.flops / turn.seconds for turn in side])) / peak
        )
        for name, side in sides.items()
    }


def main() -> None:
    rounds, precision = training_arguments(__doc__, 2)
    samples, _ = make_samples(image_token=7)
    print(
        f"{len(samples)} samples, {sum(map(len, samples))} tokens, padded to "
        f"{padded(samples)['input_ids'].numel()}; {rounds} rounds in {precision.name}",
        flush=True,
    )
    turns: dict[str, list[Turn]] = {"ours": [], "stock": [], "padded": []}
    for number in range(rounds):
        order = ["ours", "stock", "padded"]
        for name in order if number % 2 else order[::-1]:
            turn = (ours_turn,) if name == "ours" else (peer_turn, name)
            turns[name].append(apart(*turn, precision))
            print(name, turns[name][-1], flush=True)
    mine = turns["ours"][0].loss
    for name in ("stock", "padded"):
        theirs = turns[name][0].loss
        if abs(mine - theirs) > (1e-4 if precision.name == "fp32" else 1e-3) * theirs:
            raise SystemExit(f"step: losses differ, ours {mine:.6f}, {name} {theirs:.6f}")
    parts = {
        f"{name}, {precision.name}": result(
            "samples/s", compared(turns["ours"], turns[name], len(samples))
        )
        for name in ("stock", "padded")
    }
    reached = shares(precision, turns["ours"])
    if precision.name != "fp32":
        reached |= shares(Precision("fp32"), [])
    worst = min(parts.values(), key=lambda part: part["ratio"])
    report("step", {**worst, "parts": parts, **reached})


if __name__ == "__main__":
    main()
