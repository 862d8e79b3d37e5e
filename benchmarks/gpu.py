"""What has to be seen on a GPU, in one script of at most six minutes: the device computes what the
CPU computes, and how fast it trains and decodes against plain transformers modules.

    equal         loss, gradients and greedy replies of both routes, on the device against the CPU.
                  fp32 (without TF32): losses within 1e-4, gradients within 1e-2 of their norm, 95 %
                  of the tokens of replies before the first that differs. bf16: no farther from the
                  CPU's fp32 than twice as far as the CPU's own bf16 is.
    resume        training goes on from a checkpoint of the device on the CPU, and from there on the
                  device again; losses within 1e-3 of those of a run that never left it
    mllm_222m     a step of nanoVLM-222M's shape, everything trained: tokens a second, MFU, peak
                  memory; then a profile of the step (torch.profiler): share of the time in which
                  the device computes nothing, waits of the host for it, calls of item() (of
                  tensors in main memory too), and kernel launches, each a step
    align_7b      the same of LLaVA-1.5 7B's alignment: the projector is trained, the encoder and
                  the language model are frozen in bf16
    unified_1b    the same of a unified model of 1.1 billion parameters that learns to draw
    decode_135m   tokens a second with 1, 8 and 64 rows, weights in bf16: language model of an MLLM
    decode_1b     the same of the unified model of 1.1 billion parameters

Ours is what users run: chiasm.train.loop.train with a packed row, chiasm.generation's Generator.
The peer of a step is put together from SiglipVisionModel, CLIPVisionModel and LlamaForCausalLM with
sdpa and a stock loop: one padded row a sample, an attention mask, the models' own labels= loss,
fused AdamW, gradients clipped, bf16 by autocast, the same samples and the same weights (the first
losses must agree within 1 %; padded rows are halved into as many micro-batches as fit). The
peer of decoding is generate() with a static cache, without compiling; where time is left also as
transformers compiles it by default on CUDA. MFU is FLOPs by our cost model (no padding, no
logits that nobody needs; the same number for both sides) over the data sheet's dense bf16 rate.
All weights are random and made on the device.

Every part is a process of its own with a budget of seconds, so that a part that fails, hangs or
runs out of memory costs the others nothing; what could not be done is listed with the reason.
Results: gpu.json and gpu.md in the folder that --out names.

On a bare machine with a GPU, Python, torch and transformers and without a network: carry the
repository's benchmarks/ folder and wheels,

    pip wheel --no-deps --wheel-dir carried .                       # here, in the clone
    pip download --no-deps --dest carried tyro                      # and what else is missing there

    python -m venv --system-site-packages .venv                     # there, beside benchmarks/
    .venv/bin/pip install --no-index --no-deps carried/*.whl
    .venv/bin/python -m benchmarks.gpu --out results

Besides torch, transformers and what those bring, only numpy, pillow, rich and jinja2 are imported;
`PYTHONPATH=src python -m benchmarks.gpu` in a clone does without installing. `--device cpu --tiny`
runs every part at toy size on any machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.__main__ import machine, table
from benchmarks.decode import Numbers, left_padded
from benchmarks.harness import Comparison, alternate, report, result, round_to, spread_of
from benchmarks.step import padded
from benchmarks.train_unified import copy_weights, llama
from chiasm.core.batch import IGNORE, Batch, Encoded
from chiasm.core.device import resolve
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, user
from chiasm.data.processor import Processor
from chiasm.data.stream import pack_evenly
from chiasm.data.text import SPECIALS, train_bpe
from chiasm.generation.generator import Generator
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLPConfig, PixelShuffleConfig
from chiasm.mllm.language import adopt_language
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.nn.precision import round_weights
from chiasm.plan.hardware import KNOWN
from chiasm.recipes.shapes import LANGUAGE, VISION
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import TowerOptions, ViTConfig
from chiasm.vision.patches import from_array, patchify
from chiasm.vision.pretrained import adopt_encoder
from chiasm.vision.vit import ViT

CPU = torch.device("cpu")
LOSS_FP32, GRADIENT_FP32, REPLIES_FP32, RESUMED = 1e-4, 1e-2, 0.95, 1e-3
LOSS_BF16, GRADIENT_BF16 = 1e-3, 1e-2
"""Added to twice the distance of the CPU's bf16 from its fp32."""


# What a part is given, and what it says.


@dataclass
class Job:
    """A part at work. device: what is measured; deadline: of time.monotonic; say: takes a finding,
    which is kept even if the part ends early."""

    device: torch.device
    tiny: bool
    deadline: float
    say: Callable[[dict], None]

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.monotonic()

    def rate(self, name: str, measured: Comparison, unit: str = "tokens/s") -> None:
        """A line of the table of ratios."""
        self.say({"kind": "rate", "name": name, **result(unit, measured)})

    def row(self, group: str, **cells: Any) -> None:
        """A line of a table of its own; NaN is what could not be measured."""
        told = {name: None if value != value else value for name, value in cells.items()}
        self.say({"kind": "row", "table": group, "cells": told})

    def missing(self, what: str, why: str) -> None:
        self.say({"kind": "missing", "what": what, "why": " ".join(why.split())[:300]})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Report what goes wrong inside as not done, and go on."""
        try:
            yield
        except Exception as error:  # one measurement must not cost the others
            self.missing(what, f"{type(error).__name__}: {error}")
        free_memory(self.device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()


def free_memory(device: torch.device) -> None:
    """Give cached memory back and begin to count the peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """NaN where the device does not count."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else math.nan


def data_sheet(device: torch.device) -> float:
    """Dense bf16 FLOP/s of a GPU that chiasm plan knows, else NaN."""
    name = torch.cuda.get_device_name(device).upper() if device.type == "cuda" else ""
    found = [a for a in KNOWN.values() if a.name.upper() in name.replace(" ", "")]
    return max(found, key=lambda a: len(a.name)).peak if found else math.nan


# Samples and models.


class Batches:
    """A Stream that goes round a list of batches."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches, self.cursor = batches, 0

    def split(self, data_shard: int, count: int) -> None:
        raise NotImplementedError("one micro-batch a step")

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.cursor += 1
            yield self.batches[(self.cursor - 1) % len(self.batches)]


@dataclass(frozen=True)
class ImageShape:
    """side and patch in pixels; tokens: what one takes in the sequence."""

    side: int
    patch: int
    tokens: int


def conversation(
    random: np.random.Generator,
    image: ImageShape,
    words: int,
    image_token: int,
    whole: bool = False,
) -> tuple[Encoded, np.ndarray]:
    """An image and words, the second half of which is supervised; and its pixels. whole: the
    tokens of the image see each other."""
    pixels = random.uniform(-1, 1, (image.side, image.side, 3)).astype(np.float32)
    text = random.integers(8, image_token, words)
    ids = np.concatenate([np.full(image.tokens, image_token), text])
    targets = np.full(len(ids), IGNORE)
    targets[-words // 2 : -1] = ids[-words // 2 + 1 :]
    place = np.arange(len(ids))
    block = np.maximum(place - image.tokens + 1, 0) if whole else place
    grid = np.array([[image.side // image.patch] * 2])
    patches = patchify(pixels, image.patch)
    return Encoded(ids, targets, block, 0 * ids, place, patches, grid), pixels


def drawing(random: np.random.Generator, words: int, codes: int, vocabulary: Any) -> Encoded:
    """Words and the codes of an image, which are supervised."""
    ids = random.integers(8, vocabulary.text, words + codes)
    ids[words:] = random.integers(vocabulary.first_code, vocabulary.size, codes)
    targets = np.concatenate([np.full(words - 1, IGNORE), ids[words:], [IGNORE]])
    place = np.arange(len(ids))
    return Encoded(ids, targets, place, 0 * ids, place)


def questions(
    random: np.random.Generator, codes: int, branches: int, words: int, vocabulary: Any
) -> Encoded:
    """An image's codes with questions about it, which do not see each other."""
    trunk = random.integers(vocabulary.first_code, vocabulary.size, codes)
    text = random.integers(8, vocabulary.text, (branches, words))
    targets = np.concatenate([text[:, 1:], np.full((branches, 1), IGNORE)], 1)
    targets[:, : words // 2] = IGNORE
    place = codes + np.tile(np.arange(words), branches)
    position = np.concatenate([np.arange(codes), place])
    return Encoded(
        np.concatenate([trunk, text.ravel()]),
        np.concatenate([np.full(codes, IGNORE), targets.ravel()]),
        position,
        np.concatenate([0 * trunk, np.repeat(np.arange(branches) + 1, words)]),
        position,
    )


def filled(make: Callable[[int], Encoded], tokens: int, seed: int = 0) -> list[Encoded]:
    """Samples with log-normal numbers of words (median 74) that fill a row of so many tokens."""
    random, samples, room = np.random.default_rng(seed), [], tokens
    while True:
        sample = make(int(np.clip(random.lognormal(4.3, 0.9), 8, tokens // 3)))
        if len(sample) > room:
            return samples
        samples.append(sample)
        room -= len(sample)


def language_model(config: dict, device: torch.device, dtype: torch.dtype) -> Any:
    """Of a configuration, with random weights, on the device; it never stops by itself."""
    given = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **config}
    made = AutoConfig.for_model(**given, bos_token_id=None, eos_token_id=None)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(made, dtype=dtype)


class Peer(nn.Module):
    """Modules of transformers put together by hand. layer: which of the encoder's hidden states;
    None is the last after the norm. The projector is ours, so that its weights are the same."""

    def __init__(self, vision: Any, projector: Any, language: Any, layer: int | None, token: int):
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.layer, self.image_token = layer, token

    def forward(self, pixels: Tensor, input_ids: Tensor, **rest: Any) -> Tensor:
        """The loss of images [N 3 H W] and rows of ids."""
        if self.layer is None:
            features = self.vision(pixels).last_hidden_state
        else:
            hidden = self.vision(pixels, output_hidden_states=True).hidden_states
            features = hidden[self.layer][:, 1:]
        side = math.isqrt(features.shape[1])
        grids = torch.tensor([[side, side]] * len(pixels))
        tokens = self.projector(features.flatten(0, 1), grids)
        x = self.language.get_input_embeddings()(input_ids)
        x = x.masked_scatter((input_ids == self.image_token)[..., None], tokens.to(x.dtype))
        return self.language(inputs_embeds=x, use_cache=False, **rest).loss


# Equality with the CPU.


@dataclass(frozen=True)
class Outcome:
    """What a model computed: the loss a token, all gradients [N]."""

    loss: float
    gradient: Tensor

    def distance(self, other: Outcome) -> tuple[float, float]:
        """Of the losses and of the gradients, relative to the other's."""
        loss = abs(self.loss - other.loss) / abs(other.loss)
        norm = (self.gradient - other.gradient).norm() / other.gradient.norm()
        return loss, float(norm)


def outcome(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> Outcome:
    """A forward and backward pass of a copy of the model there."""
    model = copy.deepcopy(model).to(device).train()
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model.loss(batch.to(device))
    (loss.sum / loss.count).backward()
    grads = [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
    return Outcome(float(loss.sum.detach()) / loss.count, torch.cat(grads))


def toy_mllm(tiny: bool) -> tuple[MLLM, Processor, ImageShape]:
    torch.manual_seed(0)
    width, layers = (64, 1) if tiny else (256, 4)
    language = language_model(
        # At 0.02 attention is so flat that every prompt gets the same reply: nothing to check.
        {"model_type": "llama", "vocab_size": 1024, "hidden_size": width, "initializer_range": 0.06}
        | {"intermediate_size": 2 * width, "num_hidden_layers": layers}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
        CPU,
        torch.float32,
    )
    language = adopt_language(language.model, language.lm_head, "the benchmark's")
    vision = ViT(ViTConfig(64, 16 if tiny else 8, 64, 1 if tiny else 2, 2))
    projector = build_projector(MLPConfig(merge=1), 64, width, 0.06)
    side = 64 // vision.config.patch_size
    # A placeholder outside the vocabulary, so that no random reply can write it.
    model = MLLM(vision, projector, language, 1024)
    codec = MLLMCodec(vision.config, projector, model.image_token)
    processor = Processor(Numbers(tokenizer()), codec)
    return model, processor, ImageShape(64, vision.config.patch_size, side**2)


def tokenizer() -> Any:
    return train_bpe(["what is in this picture? a red circle on the left"] * 4, 300)


def unified_model(
    config: UnifiedConfig, device: torch.device, codes: int = 512
) -> tuple[Unified, Processor]:
    """With random weights and a vocabulary of config.text_vocabulary ids, of which the tokenizer
    has the first few hundred."""
    template = Numbers(tokenizer())
    vocabulary = replace(template.vocabulary(codes), text=config.text_vocabulary)
    codec = UnifiedCodec(Autoencoder(AutoencoderConfig()).to(device), vocabulary)
    with torch.device(device):
        model = Unified(config, vocabulary, codec.grid[1])
    return model, Processor(template, codec, config.max_length)


def toy_unified(tiny: bool) -> tuple[Unified, Processor]:
    torch.manual_seed(0)
    width, layers = (64, 1) if tiny else (256, 4)
    config = UnifiedConfig(
        text_vocabulary=1024,
        hidden_size=width,
        layers=layers,
        heads=4,
        kv_heads=2,
        intermediate_size=2 * width,
    )
    return unified_model(config, CPU)


def equal(job: Job) -> None:
    """Both routes, every kind of row that has a kernel of its own (nn/kernels.py)."""
    torch.backends.cudnn.allow_tf32 = False
    model, processor, image = toy_mllm(job.tiny)
    random = np.random.default_rng(0)
    tokens = 320 if job.tiny else 1024
    for name, whole in (("mllm, causal", False), ("mllm, images bidirectional", True)):
        row = filled(
            lambda n, w=whole: conversation(random, image, n, model.image_token, w)[0], tokens
        )
        with job.attempt(f"equal: {name}"):
            compare_training(job, name, model, pack_evenly(row, tokens))
    unified, drawn = toy_unified(job.tiny)
    rows = [questions(random, 64, 4, 24, unified.vocabulary) for _ in range(tokens // 160)]
    with job.attempt("equal: unified, branches"):
        compare_training(job, "unified, branches", unified, pack_evenly(rows, tokens))
    pixels = random.uniform(-1, 1, (8, 64, 64, 3))
    asked = [Sample((user(Image(from_array(p)), f"what is {n}?"),)) for n, p in enumerate(pixels)]
    told = SamplingParams(max_tokens=4 if job.tiny else 24)
    with job.attempt("equal: replies of the MLLM"):
        compare_replies(job, "mllm, replies", model, processor, asked, told)
    with job.attempt("equal: replies of the unified model"):
        compare_replies(job, "unified, replies", unified, drawn, asked, told)
    guided = SamplingParams(max_images=1, draw_first=True, guidance=1.5)
    captions = [Sample((user(f"a circle {n}"),)) for n in range(2 if job.tiny else 8)]
    with job.attempt("equal: drawings of the unified model"):
        compare_replies(job, "unified, drawings", unified, drawn, captions, guided)


def compare_training(job: Job, name: str, model: Any, batch: Batch) -> None:
    exact = outcome(model, batch, CPU, torch.float32)
    limits = {torch.float32: (LOSS_FP32, GRADIENT_FP32)}
    loss, gradient = outcome(model, batch, CPU, torch.bfloat16).distance(exact)
    limits[torch.bfloat16] = 2 * loss + LOSS_BF16, 2 * gradient + GRADIENT_BF16
    for dtype, within in limits.items():
        found = outcome(model, batch, job.device, dtype).distance(exact)
        for what, value, limit in zip(("loss", "gradient"), found, within, strict=True):
            _equality(job, f"{name}: {what}", dtype, value, limit)


def compare_replies(
    job: Job,
    name: str,
    model: Any,
    processor: Processor,
    asked: Sequence[Sample],
    sampling: SamplingParams,
) -> None:
    exact = replies(model, processor, asked, sampling, CPU, torch.float32)
    rounded = replies(model, processor, asked, sampling, CPU, torch.bfloat16)
    limits = {
        torch.float32: 1 - REPLIES_FP32,
        torch.bfloat16: min(1.0, 2 * apart(rounded, exact) + 1 - REPLIES_FP32),
    }
    for dtype, limit in limits.items():
        found = replies(model, processor, asked, sampling, job.device, dtype)
        _equality(job, name, dtype, apart(found, exact), limit)


def _equality(job: Job, name: str, dtype: torch.dtype, distance: float, limit: float) -> None:
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    cells = {"distance": distance, "allowed": limit, "within": distance <= limit}
    job.row("equal", what=f"{name}, {precision}", **cells)


def replies(
    model: Any,
    processor: Processor,
    asked: Sequence[Sample],
    sampling: SamplingParams,
    device: torch.device,
    dtype: torch.dtype,
) -> list[list[str]]:
    """The ids that each sample is answered with; of images the levels of the pixels."""
    model, processor = copy.deepcopy(model).to(device), copy.deepcopy(processor)
    if isinstance(processor.codec, UnifiedCodec):
        processor.codec.autoencoder.to(device)
    precision = "bfloat16" if dtype == torch.bfloat16 else "none"
    made: list[list[str]] = [[] for _ in asked]
    for number, piece in Generator(model, processor, precision=precision)(asked, sampling):
        made[number] += piece.text.split()
        if piece.image is not None:  # tiles, so that rounding in one place does not count for all
            pixels = np.asarray(piece.image, np.int64).reshape(8, 8, 8, 8, 3).mean((1, 3, 4))
            made[number] += [str(int(level) // 4) for level in pixels.ravel()]
    return made


def apart(one: Sequence[list[str]], other: Sequence[list[str]]) -> float:
    """The share of the tokens that come with or after the first that differs, of all replies."""
    same = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in zip(one, other, strict=True)
    ]
    return 1 - sum(same) / max(1, sum(map(len, other)))


# Resuming on another device.


def resume(job: Job) -> None:
    """Stages of 3 steps each on the devices in turn, against all of them on one."""
    torch.backends.cudnn.allow_tf32 = False
    logs = {}
    for name, devices in {
        "stayed": [job.device] * 3,
        "moved": [job.device, CPU, job.device],
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            for number, device in enumerate(devices, 1):
                _trained_stages(number, Path(folder), device, job.tiny)
            logs[name] = losses(Path(folder))
    stayed, moved = logs["stayed"], logs["moved"]
    if len(stayed) != 9 or len(moved) != 9:
        raise ValueError(f"9 steps expected, found {len(stayed)} and {len(moved)}")
    worst = max(abs(a - b) / abs(a) for a, b in zip(stayed, moved, strict=True))
    name = f"{job.device.type} -> cpu -> {job.device.type}: losses of 9 steps, fp32"
    job.row("equal", what=name, distance=worst, allowed=RESUMED, within=worst <= RESUMED)


def _trained_stages(count: int, folder: Path, device: torch.device, tiny: bool) -> None:
    model, _, image = toy_mllm(tiny)
    random, tokens = np.random.default_rng(0), 320 if tiny else 1024
    rows = [
        filled(lambda n: conversation(random, image, n, model.image_token)[0], tokens, seed)
        for seed in range(4)
    ]
    rates = dict.fromkeys(("vision", "projector", "language_model"), 1e-3)
    stage = Stage("", 3, rates, autocast="none", log_every=1, save_every=3)
    stages = [replace(stage, name=f"stage {number}") for number in range(count)]
    stream = Batches([pack_evenly(row, tokens) for row in rows])
    train(model, stages, lambda _: stream, folder, resume=count > 1, device=device, show=Watched)


def losses(folder: Path) -> list[float]:
    """Of every step, by a run's log."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


# Steps of training.


class Watched:
    """A View of training that calls a function with the number of every step that is done."""

    def __init__(self, _title: str, _total: int, _done: int = 0, done: Callable = lambda _: None):
        self.number, self.done = 0, done

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def advance(self) -> None:
        self.number += 1
        self.done(self.number)

    def status(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Counts:
    """Steps that are not timed, rounds, and steps a round."""

    warmup: int = 3
    rounds: int = 3
    steps: int = 5

    @property
    def all(self) -> int:
        return self.warmup + self.rounds * self.steps


@dataclass(frozen=True)
class Speed:
    """loss: of the first step. seconds: of a step, one number a round. peak: GB."""

    loss: float
    seconds: list[float]
    peak: float

    @property
    def step(self) -> float:
        return float(np.median(self.seconds))


def our_steps(
    job: Job,
    model: Any,
    rates: dict[str, float],
    batch: Batch,
    counts: Counts,
    done: Callable[[int], None] = lambda _: None,
) -> tuple[Speed, float]:
    """By the training loop, and what share of square products' rate it says it reaches."""
    marks: list[float] = []

    def mark(number: int) -> None:
        marks.append(time.perf_counter())  # the loop has waited for the device
        done(number)

    stage = Stage(
        "steps",
        counts.all,
        rates,
        autocast="bfloat16",
        schedule="constant",
        warmup_ratio=0.0,
        feature_cache=0.0,
        log_every=1,
    )
    free_memory(job.device)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            [stage],
            lambda _: Batches([batch]),
            Path(folder),
            device=job.device,
            show=lambda *given: Watched(*given, done=mark),
        )
        lines = [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    edges = marks[counts.warmup - 1 :: counts.steps]
    reached = float(np.median([line["mfu_measured"] for line in lines[counts.warmup :]]))
    seconds = [float(s) / counts.steps for s in np.diff(edges)]
    return Speed(lines[0]["loss"], seconds, peak_gb(job.device)), reached


Micro = dict[str, Tensor]


def peer_steps(job: Job, model: nn.Module, micro: Sequence[Micro], counts: Counts) -> Speed:
    """By a stock loop; micro: the arguments of the micro-batches of a step, in main memory, of
    which the losses add up to the mean."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    model.train()
    free_memory(job.device)
    first, seconds = math.nan, []

    def step() -> Tensor:
        total = torch.zeros((), device=job.device)
        for given in micro:
            own = {name: x.to(job.device, non_blocking=True) for name, x in given.items()}
            with torch.autocast(job.device.type, torch.bfloat16):
                loss = model(**own)
                loss = loss if isinstance(loss, Tensor) else loss.loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    for number in range(counts.warmup):
        loss = step()
        first = float(loss) if number == 0 else first
    for _ in range(counts.rounds):
        synchronize(job.device)
        began = time.perf_counter()
        for _ in range(counts.steps):
            step()
        synchronize(job.device)
        seconds.append((time.perf_counter() - began) / counts.steps)
    return Speed(first, seconds, peak_gb(job.device))


def micro_batches(samples: Sequence[Encoded], pixels: Tensor | None, most: int) -> list[Micro]:
    """Padded rows in as many parts as hold at most so many tokens each, in the samples' order."""
    longest, count = max(map(len, samples)), sum(int((s.labels != IGNORE).sum()) for s in samples)
    size = max(1, most // longest)
    made = []
    for start in range(0, len(samples), size):
        part = padded(samples[start : start + size])
        part["num_items_in_batch"] = torch.tensor(count)
        if pixels is not None:
            part["pixels"] = pixels[start : start + size]
        made.append(part)
    return made


def training(
    job: Job,
    name: str,
    batch: Batch,
    peer: Callable[[], Speed],
    ours: Callable[[], tuple[Speed, float, float]],
) -> None:
    """Measure both and say what was found. ours: its speed, the share of square products' rate,
    and the FLOPs of a step. The peer goes first, as ours takes its modules over."""
    theirs = mine = None
    flops = reached = math.nan
    with job.attempt(f"{name}: transformers"):
        theirs = peer()
    with job.attempt(f"{name}: chiasm"):
        mine, reached, flops = ours()
    if theirs and mine:
        apart = abs(mine.loss - theirs.loss) / theirs.loss
        cells = {"distance": apart, "allowed": 1e-2, "within": apart <= 1e-2}
        job.row("equal", what=f"{name}: first loss against transformers, bf16", **cells)
        rates = [[batch.tokens / s for s in side.seconds] for side in (mine, theirs)]
        spread = max(map(spread_of, rates))
        middle = [float(np.median(side)) for side in rates]
        job.rate(name, Comparison(middle[0], middle[1], spread, mine.step, theirs.step))
    sheet = data_sheet(job.device)
    for who, speed in (("chiasm", mine), ("transformers", theirs)):
        if speed:
            job.row(
                "training",
                what=f"{name}, {who}",
                tokens_per_second=batch.tokens / speed.step,
                step_ms=1e3 * speed.step,
                mfu_percent=100 * flops / speed.step / sheet,
                mfu_measured_percent=100 * reached * mine.step / speed.step if mine else math.nan,
                peak_gb=speed.peak,
            )


@dataclass(frozen=True)
class Vlm:
    """An MLLM of parts of published shapes. tower: which features; trained: rates of its groups;
    row: tokens of ours a step; most: of one of the peer's padded micro-batches."""

    vision: dict
    language: dict
    projector: Any
    tower: TowerOptions
    trained: dict[str, float]
    row: int
    most: int
    counts: Counts


def nanovlm(tiny: bool) -> Vlm:
    vision, language = VISION["google/siglip-base-patch16-224"], LANGUAGE["smollm2"]
    if tiny:
        vision = vision | {"image_size": 64, "num_hidden_layers": 1} | _narrow(vision)
        language = language | _narrow(language) | {"num_hidden_layers": 1, "vocab_size": 512}
    return Vlm(
        vision | {"vision_use_head": False},
        language,
        PixelShuffleConfig(2),
        TowerOptions(layer=-1, norm=True),
        {"vision": 1e-4, "projector": 1e-4, "language_model": 1e-4},
        320 if tiny else 16384,
        1024 if tiny else 32768,
        Counts(1, 1, 2) if tiny else Counts(),
    )


def llava(tiny: bool) -> Vlm:
    vision = VISION["openai/clip-vit-large-patch14-336"]
    language = LANGUAGE["lmsys/vicuna-7b-v1.5"]
    if tiny:
        vision = vision | {"image_size": 56, "num_hidden_layers": 2} | _narrow(vision)
        language = language | _narrow(language) | {"num_hidden_layers": 1, "vocab_size": 512}
    return Vlm(
        vision,
        language,
        MLPConfig(layers=2, merge=1),
        TowerOptions(layer=-2),
        {"projector": 1e-3},
        320 if tiny else 8192,
        1024 if tiny else 16384,
        Counts(1, 1, 2) if tiny else Counts(2, 3, 2),
    )


def _narrow(config: dict) -> dict:
    heads = {k: 2 for k in ("num_attention_heads", "num_key_value_heads") if k in config}
    return {"hidden_size": 64, "intermediate_size": 96, **heads}


def step_of(job: Job, name: str, shape: Vlm, profiled: bool) -> None:
    """The peer's modules, which ours takes over with the weights they began with."""
    torch.manual_seed(0)
    low, full = torch.bfloat16, torch.float32
    frozen = {group: group not in shape.trained for group in ("vision", "language_model")}
    config = AutoConfig.for_model(**shape.vision)
    with torch.device(job.device):
        vision = AutoModel.from_config(config, dtype=low if frozen["vision"] else full)
    language = language_model(shape.language, job.device, low if frozen["language_model"] else full)
    for group, part in (("vision", vision), ("language_model", language)):
        part.requires_grad_(not frozen[group])
        for norm in (m for m in part.modules() if isinstance(m, nn.LayerNorm)):
            norm.float()
    widths = vision.config.hidden_size, language.config.hidden_size
    projector = build_projector(shape.projector, *widths, 1.0).to(job.device)
    side = shape.vision["image_size"] // shape.vision["patch_size"]
    grid = torch.tensor([[side, side]])
    with torch.no_grad():
        blank = torch.zeros(side**2, widths[0], device=job.device)
        image = ImageShape(
            side * shape.vision["patch_size"],
            shape.vision["patch_size"],
            len(projector(blank, grid)),
        )
    token = language.config.vocab_size - 1
    seen: list[np.ndarray] = []
    random = np.random.default_rng(0)

    def make(words: int) -> Encoded:
        sample, pixels = conversation(random, image, words, token)
        seen.append(pixels)
        return sample

    samples = filled(make, shape.row)
    batch = pack_evenly(samples, shape.row)
    pixels = torch.from_numpy(np.stack(seen[: len(samples)])).permute(0, 3, 1, 2).contiguous()
    peer = Peer(vision, projector, language, None if shape.tower.norm else shape.tower.layer, token)
    first = {n: p.detach().cpu().clone() for n, p in peer.named_parameters() if p.requires_grad}
    colours = _colours(shape)

    def theirs() -> Speed:
        made = micro_batches(samples, colours(pixels), shape.most)
        return peer_steps(job, peer, made, shape.counts)

    def ours() -> tuple[Speed, float, float]:
        peer.zero_grad(set_to_none=True)
        peer.load_state_dict(first, strict=False)  # the trained ones, as they began
        with tempfile.TemporaryDirectory() as folder:  # says nothing of how images are normalised
            encoder = adopt_encoder(vision, folder, shape.tower).to(job.device)
        adopted = adopt_language(language.model, language.lm_head, "the benchmark's")
        model = MLLM(encoder, projector, adopted, token)
        flops = model.cost(batch).flops
        speed, reached = our_steps(job, model, shape.trained, batch, shape.counts)
        if profiled:
            with job.attempt(f"{name}: profile"):
                profile(job, name, model, shape.trained, batch)
        return speed, reached, flops

    training(job, name, batch, theirs, ours)


def _colours(shape: Vlm) -> Callable[[Tensor], Tensor]:
    """From [-1, 1] to what the family's encoders are given."""
    from chiasm.vision.pretrained import FAMILIES

    mean, deviation = map(torch.tensor, FAMILIES[shape.vision["model_type"]].colours)
    return lambda x: ((x + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]


def mllm_222m(job: Job) -> None:
    step_of(job, "nanoVLM-222M step", nanovlm(job.tiny), True)


def align_7b(job: Job) -> None:
    step_of(job, "LLaVA-1.5 7B align step", llava(job.tiny), False)


def billion(tiny: bool) -> UnifiedConfig:
    """Llama 3.2 1B's layers (without what a stock Llama has not) under ids of our own."""
    size = (
        {
            "hidden_size": 64,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "intermediate_size": 96,
            "text_vocabulary": 512,
        }
        if tiny
        else {
            "hidden_size": 2048,
            "layers": 16,
            "heads": 32,
            "kv_heads": 8,
            "intermediate_size": 8192,
        }
        | {"text_vocabulary": 32768}
    )
    return UnifiedConfig(
        **size,
        max_length=4096,
        qk_norm=False,
        z_loss=0.0,
        image_weight=1.0,
        factorized_code_embedding=False,
    )


def unified_1b(job: Job) -> None:
    torch.manual_seed(0)
    config, row = billion(job.tiny), 320 if job.tiny else 8192
    counts = Counts(1, 1, 2) if job.tiny else Counts(2, 3, 3)
    model, _ = unified_model(config, job.device)
    random, codes = np.random.default_rng(0), 32 if job.tiny else 256
    samples = filled(lambda n: drawing(random, n, codes, model.vocabulary), row)
    batch = pack_evenly(samples, row)

    def theirs() -> Speed:
        with torch.device(job.device):
            peer = llama(config, model.vocabulary.size)
        copy_weights(model, peer)
        model.cpu()  # not to be counted in the peer's memory
        return peer_steps(job, peer, micro_batches(samples, None, 4 * row), counts)

    def ours() -> tuple[Speed, float, float]:
        model.to(job.device)
        rates = {"embedding": 1e-4, "transformer": 1e-4}
        return *our_steps(job, model, rates, batch, counts), model.cost(batch).flops

    training(job, "unified 1B step", batch, theirs, ours)


# A profile.

WAITS = frozenset(
    ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
)
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def profile(job: Job, name: str, model: Any, rates: dict[str, float], batch: Batch) -> None:
    """Of three steps of the training loop."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, record_function

    activities = [ProfilerActivity.CPU]
    if job.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    watched = torch.profiler.profile(activities=activities)
    steps, before = 3, 3

    def done(number: int) -> None:
        if number == before:
            watched.start()
        if number in (before, before + steps):
            with record_function(f"chiasm: {number}"):
                pass
        if number == before + steps:
            watched.stop()

    our_steps(job, model, rates, batch, Counts(before, 1, steps + 1), done)
    events = watched.events()
    assert events is not None
    edges = {e.name: e.time_range for e in events if e.name.startswith("chiasm: ")}
    start = edges[f"chiasm: {before}"].end
    end = edges[f"chiasm: {before + steps}"].start
    inside = [e for e in events if start <= e.time_range.start <= end]
    busy = covered(
        (max(e.time_range.start, start), min(e.time_range.end, end))
        for e in events
        if e.device_type != DeviceType.CPU and e.time_range.end > start
    )
    names = [e.name for e in inside if e.device_type == DeviceType.CPU]
    on_device = job.device.type == "cuda"
    if not on_device:
        job.missing(f"{name}: share of idle time", f"no timeline of a {job.device.type}")
    job.row(
        "profile",
        what=name,
        step_ms=(end - start) / 1e3 / steps,
        idle_percent=100 * (1 - busy / (end - start)) if on_device else math.nan,
        waits=sum(n in WAITS for n in names) / steps if on_device else math.nan,
        item_calls=names.count("aten::_local_scalar_dense") / steps,
        launches=sum(n.startswith(LAUNCHES) for n in names) / steps if on_device else math.nan,
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


# Decoding.


@dataclass
class Decoding:
    """Both sides of decoding prompts of about 64 tokens, greedy: the whole call, prompts included.
    new: tokens a reply. ours, theirs: the last replies, which near-ties in bf16 set apart."""

    generator: Generator
    peer: Any
    asked: Sequence[Sample]
    new: int
    ours: Sequence[list[str]] = ()
    theirs: Sequence[list[str]] = ()

    def run_ours(self) -> float:
        made: list[list[str]] = [[] for _ in self.asked]
        for number, piece in self.generator(self.asked, SamplingParams(max_tokens=self.new)):
            made[number] += piece.text.split()
        self.ours = made
        return self.new * len(made)

    def run_peer(self, compiles: bool = False) -> float:
        prompts = self.generator.processor.prompts(self.asked)
        ids, mask = left_padded([encoded.input_ids.tolist() for encoded, _ in prompts], 0)
        with torch.inference_mode():
            out = self.peer.generate(
                ids.to(self.generator.device),
                attention_mask=mask.to(self.generator.device),
                do_sample=False,
                max_new_tokens=self.new,
                pad_token_id=0,
                cache_implementation="static",
                disable_compile=not compiles,
            )
        self.theirs = [list(map(str, row)) for row in out[:, ids.shape[1] :].tolist()]
        return self.new * len(ids)


def decoding(job: Job, name: str, model: Any, peer: Any, processor: Processor) -> None:
    """With several numbers of rows."""
    new, rounds = (4, 1) if job.tiny else (64, 2)
    generator = Generator(model.eval(), processor, tokens=1 << 20)
    random, sides = np.random.default_rng(0), {}
    for count in (1, 2) if job.tiny else (1, 8, 64):
        digits = random.integers(0, 10, (count, 30))
        asked = [Sample((user(" ".join(map(str, row))),)) for row in digits]
        label = f"{name}, {count} row{'s' * (count > 1)}"
        sides[label] = side = Decoding(generator, peer, asked, new)
        with job.attempt(label):
            job.rate(label, alternate(side.run_ours, side.run_peer, rounds))
            job.row("replies", what=label, same_percent=100 * (1 - apart(side.ours, side.theirs)))
    # Last, as what compiles may take all of the time that is left.
    for label, side in sides.items() if job.device.type == "cuda" else ():
        what = f"{label}, transformers compiled"
        if job.left < 15:
            job.missing(what, f"{job.left:.0f} s were left of this part's time")
            continue
        with job.attempt(what):
            measured = alternate(side.run_ours, partial(side.run_peer, True), rounds)
            job.rate(what, measured)


def decode_135m(job: Job) -> None:
    torch.manual_seed(0)
    shape = LANGUAGE["smollm2"]
    if job.tiny:
        shape = shape | _narrow(shape) | {"num_hidden_layers": 1, "vocab_size": 512}
    shape = shape | {"initializer_range": 0.06}
    peer = language_model(shape, job.device, torch.bfloat16).eval()
    own = copy.deepcopy(peer)
    language = adopt_language(own.model, own.lm_head, "the benchmark's")
    vision = ViT(ViTConfig())
    width = language.config.hidden_size
    projector = build_projector(MLPConfig(merge=1), vision.config.width, width, 0.02)
    model = MLLM(vision, projector, language, language.config.vocab_size)
    processor = Processor(
        Numbers(tokenizer()), MLLMCodec(vision.config, projector, model.image_token)
    )
    round_weights(model.to(job.device))
    decoding(job, "decode 135M", model, peer, processor)


def decode_1b(job: Job) -> None:
    """Codes of images and control tokens, which ours is kept from saying in a text, get logits of 0
    on both sides, so that the peer does not say them either."""
    torch.manual_seed(0)
    config = billion(job.tiny)
    model, processor = unified_model(config, job.device)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[model.vocabulary.first_code :] = 0.0
        model.lm_head.weight[: len(SPECIALS)] = 0.0
    with torch.device(job.device):
        peer: LlamaForCausalLM = llama(config, model.vocabulary.size)
    copy_weights(model, peer)
    round_weights(model)
    round_weights(peer.eval())
    decoding(job, "decode 1B", model, peer, processor)


# Parts, each in a process of its own.

PARTS: dict[str, tuple[Callable[[Job], None], float]] = {
    "equal": (equal, 90),
    "resume": (resume, 30),
    "mllm_222m": (mllm_222m, 50),
    "align_7b": (align_7b, 50),
    "unified_1b": (unified_1b, 45),
    "decode_135m": (decode_135m, 50),
    "decode_1b": (decode_1b, 45),
}
"""What is run and the seconds it may take, which --seconds stretches."""

SAYS = "@finding "
"""Begins a line of a part's output that is a finding as JSON."""


def work(given: argparse.Namespace) -> None:
    """One part, in this process."""

    def say(finding: dict) -> None:
        print(SAYS + json.dumps(finding), flush=True)

    job = Job(resolve(given.device), given.tiny, time.monotonic() + given.seconds, say)
    with job.attempt(given.part):
        PARTS[given.part][0](job)


def watched(name: str, command: Sequence[str], seconds: float) -> list[dict]:
    """The findings of a part's process, which is ended when its time is up."""
    findings: list[dict] = []
    job = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert job.stdout is not None
        for line in job.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline, why, last = time.monotonic() + seconds, "", ""
    while True:
        try:
            line = lines.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            why = f"its {seconds:.0f} s were over"
            os.killpg(job.pid, signal.SIGKILL)  # with the processes that compile for it
            break
        if line is None:
            break
        if line.startswith(SAYS):
            findings.append(json.loads(line[len(SAYS) :]))
            print(f"{name}: {json.dumps(findings[-1])}", flush=True)
        elif line.strip():
            last = line.strip()
            print(f"{name}| {line}", end="", flush=True)
    if job.wait() and not why:
        why = f"ended with code {job.returncode}: {last}"
    if why:
        findings.append({"kind": "missing", "what": f"{name}: the rest", "why": why})
    return findings


def summary(findings: Sequence[dict], where: str) -> tuple[dict, str]:
    """The JSON line's object, without "name", and the Markdown."""
    parts = {
        f["name"]: {k: v for k, v in f.items() if k not in ("kind", "name")}
        for f in findings
        if f["kind"] == "rate"
    }
    worst = min(parts.values(), key=lambda part: part["ratio"]) if parts else {}
    said = {**worst, "parts": parts}
    text = [table({"name": "gpu", **said}, where) if parts else where]
    for group in dict.fromkeys(f["table"] for f in findings if f["kind"] == "row"):
        rows = [f["cells"] for f in findings if f["kind"] == "row" and f["table"] == group]
        text += ["", *_markdown(rows)]
    missing = [f"- {f['what']}: {f['why']}" for f in findings if f["kind"] == "missing"]
    text += ["", "Not done:", "", *missing] if missing else []
    return said, "\n".join(text) + "\n"


def _markdown(rows: Sequence[dict]) -> list[str]:
    """A table of rows with the same keys, of which the first names."""
    heads = list(rows[0])
    lines = [
        f"| {' | '.join(head.replace('_', ' ') for head in heads)} |",
        f"|---|{'--:|' * (len(heads) - 1)}",
    ]
    return lines + [f"| {' | '.join(_cell(row[head]) for head in heads)} |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, str):
        return value
    if value is None:  # not measured
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def named_machine(device: str) -> str:
    """The machine's line, with the GPU's name."""
    found = resolve(device)
    named = f"{torch.cuda.get_device_name(found)}, " if found.type == "cuda" else ""
    return f"{machine()}, device {named}{found}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: whether it runs, no speed")
    parser.add_argument("--seconds", type=float, default=360, help="for all parts (default 360)")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    if given.part:
        work(given)
        return
    began, findings = time.monotonic(), []
    given.out.mkdir(parents=True, exist_ok=True)
    budgets = {name: PARTS[name][1] for name in given.parts}
    stretch = given.seconds / sum(seconds for _, seconds in PARTS.values())
    for name, seconds in budgets.items():
        left = given.seconds - (time.monotonic() - began)
        own = min(left, max(1.0, stretch) * seconds)
        if own < 5:
            findings.append({"kind": "missing", "what": name, "why": "no time was left for it"})
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--seconds", str(own)]
        command += ["--device", given.device, *(["--tiny"] if given.tiny else [])]
        findings += watched(name, command, own)
        said, text = summary(findings, named_machine(given.device))
        document = {"machine": named_machine(given.device), "findings": findings}
        (given.out / "gpu.json").write_text(json.dumps(document, indent=1))
        (given.out / "gpu.md").write_text(text)
    said, text = summary(findings, named_machine(given.device))
    print(text, flush=True)
    differ = [f["cells"]["what"] for f in findings if f.get("cells", {}).get("within") is False]
    if differ or not said["parts"]:
        print(f"error: {', '.join(differ) or 'nothing was measured'}", file=sys.stderr, flush=True)
    counts = {"not_done": sum(f["kind"] == "missing" for f in findings), "differ": len(differ)}
    report("gpu", {**said, **counts, "seconds": round_to(time.monotonic() - began)})
    sys.exit(1 if differ or not said["parts"] else 0)


if __name__ == "__main__":
    main()
