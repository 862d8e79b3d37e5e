"""chiasm eval of images: those that a model draws of prompts, and those that it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from rich.console import Console
from rich.table import Table

from chiasm.core.config import current, tag_of
from chiasm.core.device import model_device
from chiasm.core.errors import DataError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, user
from chiasm.data.caption import caption_of
from chiasm.eval.metrics.frechet import frechet_distance, frechet_name
from chiasm.eval.metrics.image import psnr, ssim
from chiasm.eval.prompts import draw_prompts, mean_clip_score, rules_apply, score_by_rules
from chiasm.eval.zero_shot import batches
from chiasm.hub.generic import is_generic
from chiasm.hub.load import layout_of, load, load_as
from chiasm.hub.source import local_folder
from chiasm.recipes.chat import responder
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.jobs.tokenizer import pixels_of
from chiasm.train.checkpoint import read_json
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.dual import Dual, OwnDual, load_stock_dual
from chiasm.vision.patches import from_array

Images = Sequence[PIL.Image.Image]


def draw_command(run: Path, asked: Asked, out: Path, count: int, judge: Path | None) -> None:
    """Draw a benchmark's prompts or a set's captions; score what can be scored here. Of captions
    that belong to images a judge also tells the Fréchet distance from those."""
    dual = None if judge is None else _judge(judge)
    samples = asked.samples()[: asked.limit or None]
    real: list[PIL.Image.Image] = []
    if asked.metric == "drawing":
        samples = [s for s in samples if caption_of(s) and s.images]
        if not samples:
            raise DataError(f"{asked.task}: no images with captions to draw after")
        real = [sample.images[0].load() for sample in samples]
        samples = [_prompt(sample) for sample in samples]
    sampling = SamplingParams(temperature=1.0, top_p=0.95, guidance=1.5, seed=asked.seed)
    images = draw_prompts(responder(run), samples, out, count, sampling)
    scores = score_by_rules(samples, images) if rules_apply(samples) else {}
    if dual is not None and judge is not None:
        scores[f"CLIPScore ({judge.name})"] = mean_clip_score(dual, samples, images)
        if len(real) > 1:
            drawn = [image for of_one in images for image in of_one]
            scores[frechet_name(judge.name)] = _distance(dual, drawn, real)
    if scores:
        report_scores(scores, asked.name, f"{len(samples)} prompts, {count} images each")
    Console().print(f"{out}: images as GenEval's evaluation/evaluate_images.py reads them")


def reconstruct_command(run: Path, asked: Asked, judge: Path | None) -> None:
    """What an image tokenizer, or that of a unified model, leaves of a set's images: means of
    PSNR (dB) and SSIM, and with a judge the Fréchet distance."""
    dual = None if judge is None else _judge(judge)
    inner = run / "image_tokenizer"
    model, processor = load_as(inner if inner.is_dir() else run, Autoencoder, "eval")
    samples = [s for s in asked.samples()[: asked.limit or None] if s.images]
    if not samples:
        raise DataError(f"{asked.task}: no images to reconstruct")
    before: list[PIL.Image.Image] = []
    after: list[PIL.Image.Image] = []
    with torch.inference_mode():
        for part in batches(samples):
            pixels = pixels_of(processor, part)
            before += _images(pixels)
            after += _images(model.decode(model.encode(pixels.to(model_device(model)))).cpu())
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(after, before, strict=True)]
    scores = {
        "PSNR": float(np.mean([psnr(a, b) for a, b in pairs])),
        "SSIM": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if dual is not None and judge is not None and len(samples) > 1:
        scores[frechet_name(judge.name)] = _distance(dual, after, before)
    report_scores(scores, asked.name, f"{len(samples)} images through the tokenizer")


def contrastive(run: Path) -> Dual | None:
    """A contrastive encoder of ours or of transformers, from a folder or as OWNER/NAME of the hub;
    None for anything else."""
    run = local_folder(run)
    if (run / "model.json").exists():
        if current(read_json(run / "model.json").get("kind")) != tag_of(ContrastiveConfig):
            return None
        return OwnDual(*load(run))
    if layout_of(run) is not None or is_generic(run):
        return None
    if (run / "config.json").exists():
        return load_stock_dual(str(run))
    return None


def report_scores(scores: dict[str, float], name: str, what: str) -> None:
    table = Table(title=f"{name}: {what}")
    table.add_column("")
    table.add_column("score", justify="right")
    for key, value in scores.items():
        table.add_row(key, f"{value:.4g}")
    Console().print(table)


def _judge(folder: Path) -> Dual:
    dual = contrastive(folder)
    if dual is None:
        raise DataError(f"{folder}: no contrastive encoder; train one with 'chiasm train encoder'")
    return dual


def _prompt(sample: Sample) -> Sample:
    turns = (user(str(caption_of(sample))),)
    return Sample(turns, sample.id, sample.source, meta={"category": "all"})


def _distance(dual: Dual, first: Images, second: Images) -> float:
    """Fréchet distance of the judge's features."""

    def features(images: Images) -> np.ndarray:
        return np.concatenate([dual.embed_images(part).numpy() for part in batches(images)])

    return frechet_distance(features(first), features(second))


def _images(pixels: torch.Tensor) -> list[PIL.Image.Image]:
    """Of [N 3 H W] in [-1, 1]."""
    return [from_array(one) for one in pixels.permute(0, 2, 3, 1).numpy()]
