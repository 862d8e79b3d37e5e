"""Images for a list of prompts, kept as GenEval's own evaluation reads them, and scored by rules
where rules can see what they show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample
from chiasm.eval.metrics.agreement import agrees
from chiasm.eval.metrics.clipscore import clip_score
from chiasm.eval.metrics.flat_shapes import PALETTE, find_shapes
from chiasm.generation.best_of import draw
from chiasm.generation.generator import Generator
from chiasm.vision.dual import Dual

SHAPES = frozenset({"rectangle", "circle", "triangle"})
Images = list[list[PIL.Image.Image]]


def draw_prompts(
    respond: Generator,
    samples: Sequence[Sample],
    out: Path,
    count: int,
    sampling: SamplingParams,
    show: Show = Bar,
) -> Images:
    """`count` images a prompt, written to out/00000/samples/0000.png with the prompt's record in
    out/00000/metadata.jsonl. Raises NotGenerativeError for a model that cannot draw."""
    images: Images = []
    with show("drawing", len(samples), 0) as view:
        for number, sample in enumerate(samples):
            folder = out / f"{number:05d}"
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "metadata.jsonl").write_text(json.dumps(_record(sample)) + "\n")
            # Two samples may have one prompt: their images are others all the same.
            own = replace(sampling, seed=sampling.seed + number)
            drawn = [d.best for d in draw(respond, [prompt_of(sample)] * count, own)]
            for i, image in enumerate(drawn):
                image.save(folder / "samples" / f"{i:04d}.png")
            images.append(drawn)
            view.advance()
    return images


def prompt_of(sample: Sample) -> str:
    return sample.turns[0].text


def rules_apply(samples: Sequence[Sample]) -> bool:
    """Whether all prompts are of what metrics/flat_shapes.py can find: its shapes and colours."""
    if not all("include" in sample.meta for sample in samples):
        return False
    rules = [r for s in samples for r in (*s.meta["include"], *(s.meta.get("exclude") or ()))]
    return all(r["class"] in SHAPES and r.get("color", "red") in PALETTE for r in rules)


def score_by_rules(samples: Sequence[Sample], images: Images) -> dict[str, float]:
    """The share of images that agree with their prompt: "all", and of each tag."""
    found: dict[str, list[bool]] = {"all": []}
    for sample, drawn in zip(samples, images, strict=True):
        right = [agrees(sample.meta, find_shapes(image)) for image in drawn]
        found["all"] += right
        found.setdefault(sample.meta["category"], []).extend(right)
    return {name: sum(right) / len(right) for name, right in found.items()}


def mean_clip_score(dual: Dual, samples: Sequence[Sample], images: Images) -> float:
    """CLIPScore of all images with their prompts. Raises DataError without images."""
    scores = []
    for sample, drawn in zip(samples, images, strict=True):
        embedded = dual.embed_images(drawn).numpy()
        text = dual.embed_texts([prompt_of(sample)]).numpy()
        scores.append(clip_score(embedded, np.repeat(text, len(embedded), 0)))
    if not scores:
        raise DataError("there are no images to score")
    return float(np.concatenate(scores).mean())


def _record(sample: Sample) -> dict:
    rules = {key: sample.meta[key] for key in ("include", "exclude") if key in sample.meta}
    return {"tag": sample.meta.get("category", "all"), **rules, "prompt": prompt_of(sample)}
