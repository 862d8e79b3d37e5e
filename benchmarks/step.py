"""A training step of the nanoVLM-222M shape against plain transformers modules with a stock loop.

SigLIP-B/16 at 224 pixels, pixel shuffle 2 (49 tokens a picture), SmolLM2-135M, all of it trained
from random weights, on the same samples: one picture each, text of log-normal length (median 74
tokens, as the mixture "cauldron" of tests/data/test_packing.py), the second half of it supervised.

    ours     chiasm.mllm.model.MLLM on one packed row of at most 1,024 tokens: every sample attends
             by itself, logits only where there is a target
    stock    SiglipVisionModel, a linear layer and LlamaForCausalLM with their defaults (sdpa), the
             samples laid end to end as transformers' DataCollatorWithFlattening does: position_ids
             tell the samples apart; the model's own labels= loss
    padded   the same modules, every sample a row of its own, padded on the right to the longest,
             with an attention mask

A unit is a sample. All: fp32, equal threads, AdamW, gradients clipped at 1. Ours runs as the engine
does: AdamW is fused, and freed memory is kept (core/allocator.py). The peers run in a process of
their own, as a script of torch's defaults does: AdamW as it comes, memory as glibc gives it. Before
timing the three losses are checked to be equal with equal weights. Encoding and collating are not
timed.

Extra keys: what share of this machine's rate of square matrix products ours reaches, counted by the
cost model (the tower included, padding and logits nobody needs not), for this model and for a step
of recipes/unified_base.py's shape in rows of the same length.
"""

from __future__ import annotations

import copy
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, LlamaForCausalLM, SiglipVisionModel

from benchmarks.harness import Run, alternate, report, result, round_to, rounds_argument
from chiasm.core.allocator import keep_freed_memory
from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.vocab import Vocabulary
from chiasm.mllm.config import PixelShuffleConfig
from chiasm.mllm.language import adopt_language
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.recipes import nanovlm_222m, unified_base
from chiasm.recipes.shapes import LANGUAGE, VISION
from chiasm.train.meter import peak_rate
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import TowerOptions
from chiasm.vision.patches import patchify
from chiasm.vision.pretrained import adopt_encoder

TOKENS = 1024
SIDE, PATCH, SHUFFLE = 224, 16, 2
VISUAL = (SIDE // PATCH // SHUFFLE) ** 2


class Stock(nn.Module):
    """The model as transformers' classes are put together by hand."""

    def __init__(self) -> None:
        super().__init__()
        config = nanovlm_222m.recipe().model
        vision = AutoConfig.for_model(**VISION[config.encoder], vision_use_head=False)
        language = AutoConfig.for_model(**LANGUAGE[config.language])
        self.vision = SiglipVisionModel(vision)
        self.projector = nn.Linear(
            vision.hidden_size * SHUFFLE**2, language.hidden_size, bias=False
        )
        self.language = LlamaForCausalLM(language)
        self.image_token = language.vocab_size - 1

    def forward(self, pixels: Tensor, input_ids: Tensor, **rest: Tensor) -> Tensor:
        """The mean loss of pictures [N 3 H W] and rows of ids."""
        features = self.vision(pixels).last_hidden_state
        side = SIDE // PATCH // SHUFFLE
        squares = features.view(len(pixels), side, SHUFFLE, side, SHUFFLE, -1).transpose(2, 3)
        tokens = self.projector(squares.reshape(len(pixels), VISUAL, -1))
        x = self.language.get_input_embeddings()(input_ids)
        x = x.masked_scatter((input_ids == self.image_token)[..., None], tokens)
        return self.language(inputs_embeds=x, use_cache=False, **rest).loss


def ours_of(stock: Stock) -> MLLM:
    """The same weights, another copy of them, put together by this package."""
    parts = copy.deepcopy(stock)
    with tempfile.TemporaryDirectory() as folder:  # says nothing about how pictures are normalised
        vision = adopt_encoder(parts.vision, folder, TowerOptions(layer=-1, norm=True))
    language = adopt_language(parts.language.model, parts.language.lm_head, "the benchmark's")
    widths = parts.vision.config.hidden_size, parts.language.config.hidden_size
    projector = build_projector(PixelShuffleConfig(SHUFFLE), *widths, 1.0)
    projector.load_state_dict({"proj.weight": parts.projector.weight})
    return MLLM(vision, projector, language, stock.image_token)


def make_samples(image_token: int) -> tuple[list[Encoded], Tensor]:
    """Samples that fill a row of TOKENS, and their pictures [N 3 H W]."""
    random = np.random.default_rng(0)
    samples: list[Encoded] = []
    pictures = []
    while True:
        words = int(np.clip(random.lognormal(4.3, 0.9), 8, TOKENS - VISUAL))
        if sum(map(len, samples)) + VISUAL + words > TOKENS:
            return samples, torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        pixels = random.uniform(-1, 1, (SIDE, SIDE, 3)).astype(np.float32)
        ids = np.concatenate([np.full(VISUAL, image_token), random.integers(0, image_token, words)])
        targets = np.full(len(ids), IGNORE)
        targets[-words // 2 : -1] = ids[-words // 2 + 1 :]
        place = np.arange(len(ids))
        grid = np.array([[SIDE // PATCH] * 2])
        samples.append(Encoded(ids, targets, place, 0 * ids, place, patchify(pixels, PATCH), grid))
        pictures.append(pixels)


def labels_of(sample: Encoded) -> Tensor:
    """Targets as transformers wants them: not yet shifted."""
    return torch.from_numpy(np.concatenate([[IGNORE], sample.targets[:-1]]))


def flattened(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """One row, end to end."""
    return {
        "input_ids": torch.cat([torch.from_numpy(s.ids) for s in samples])[None],
        "position_ids": torch.cat([torch.from_numpy(s.position) for s in samples])[None],
        "labels": torch.cat([labels_of(s) for s in samples])[None],
    }


def padded(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """A row a sample."""
    longest = max(map(len, samples))
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = torch.from_numpy(sample.ids)
        labels[row, : len(sample)] = labels_of(sample)
        mask[row, : len(sample)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class Peer:
    """Stock in a process of its own, which works while we wait for it."""

    def __init__(self, samples: list[Encoded], pixels: Tensor):
        context = multiprocessing.get_context("spawn")
        self.line, far = context.Pipe()
        given = (far, samples, pixels.numpy(), torch.get_num_threads())
        self.job = context.Process(target=_serve, args=given, daemon=True)
        self.job.start()

    def ask(self, what: str, name: str) -> float:
        """ "loss" of the rows called `name`, or a "step" with them."""
        self.line.send((what, name))
        return self.line.recv()

    def run(self, name: str) -> Run:
        return lambda: self.ask("step", name)


def _serve(line: Connection, samples: list[Encoded], pixels: np.ndarray, threads: int) -> None:
    torch.set_num_threads(threads)
    model = seeded().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = {"stock": flattened(samples), "padded": padded(samples)}
    while True:
        what, name = line.recv()
        row = {"pixels": torch.from_numpy(pixels), **rows[name]}
        if what == "loss":
            with torch.no_grad():
                line.send(float(model(**row)))
        else:
            _update(model, optimizer, model(**row))
            line.send(float(len(samples)))


def seeded() -> Stock:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Stock()


def check(ours: MLLM, peer: Peer, batch: Batch) -> None:
    """Equal weights must give equal losses, or the sides are not taught the same."""
    with torch.no_grad():
        loss = ours.loss(batch)
    mine = float(loss.sum) / loss.count
    for name in ("stock", "padded"):
        theirs = peer.ask("loss", name)
        if abs(mine - theirs) > 1e-4 * theirs:
            raise SystemExit(f"step: losses differ, ours {mine:.6f}, {name} {theirs:.6f}")


def ours_run(model: MLLM | Unified, batch: Batch, samples: int) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        loss = model.loss(batch)
        _update(model, optimizer, loss.sum / loss.count)
        return samples

    return run


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def unified_share(peak: float, rounds: int) -> float:
    """Of the peak, by a step of unified_base's shape: texts of 128 tokens with a picture of 256
    codes to draw."""
    config = unified_base.recipe().model
    assert isinstance(config, UnifiedConfig)
    vocabulary = Vocabulary(config.text_vocabulary, 512, 0, 1, 2, 3, 4)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(TOKENS // 384):
        ids = random.integers(5, config.text_vocabulary, 384)
        ids[128:] = random.integers(vocabulary.first_code, vocabulary.size, 256)
        targets = np.append(np.full(127, IGNORE), ids[128:])
        place = np.arange(384)
        rows.append(Encoded(ids, np.append(targets, IGNORE), place, 0 * ids, place))
    batch = pack([rows])
    model = Unified(config, vocabulary, 16).train()
    run, flops, seconds = ours_run(model, batch, 1), model.cost(batch).flops, []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return flops / float(np.median(seconds[1:])) / peak


def main() -> None:
    rounds = rounds_argument(__doc__, 2)
    keep_freed_memory()
    peak = peak_rate(torch.device("cpu"), torch.float32, 1)
    stock = seeded()
    samples, pixels = make_samples(stock.image_token)
    ours, peer, batch = ours_of(stock), Peer(samples, pixels), pack([samples])
    check(ours, peer, batch)
    n, flops = len(samples), ours.train().cost(batch).flops
    print(
        f"{n} samples, {batch.tokens} tokens, {flops / 1e12:.2f} TFLOP; padded to "
        f"{padded(samples)['input_ids'].numel()}; peak {peak / 1e9:.0f} GFLOP/s; {rounds} rounds",
        flush=True,
    )
    parts, shares = {}, []
    mine = ours_run(ours, batch, n)
    for name in ("stock", "padded"):
        measured = alternate(mine, peer.run(name), rounds)
        parts[name] = result("samples/s", measured)
        shares.append(flops / measured.ours_seconds / peak)
    peer.job.kill()
    worst = min(parts.values(), key=lambda part: part["ratio"])
    report(
        "step",
        {
            **worst,
            "parts": parts,
            "mllm_of_achievable": round_to(float(np.mean(shares))),
            "unified_of_achievable": round_to(unified_share(peak, rounds)),
        },
    )


if __name__ == "__main__":
    main()
