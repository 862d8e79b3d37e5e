"""What a contrastive encoder knows without training on it: classes by their names, retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core.errors import DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Sample
from chiasm.eval.metrics.ranking import recall_at, top_k
from chiasm.eval.metrics.vqa import exact_match
from chiasm.eval.scoring import answers_of
from chiasm.vision.dual import Dual

T = TypeVar("T")

PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven that CLIP's authors found to do as well as their eighty (their Prompt_Engineering
notebook)."""
BATCH = 64


def class_vectors(dual: Dual, classes: Sequence[str], prompts: Sequence[str] = PROMPTS) -> Tensor:
    """[C D]: norm(mean over the prompts of norm(text)) of each class (2103.00020, section 3.1.4).
    Raises DataError for a prompt without "{}"."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise DataError(f"prompt '{prompt}': write {{}} where the class's name goes")
    texts = [prompt.replace("{}", name) for name in classes for prompt in prompts]
    vectors = torch.cat([dual.embed_texts(part) for part in batches(texts)])
    return F.normalize(vectors.view(len(classes), len(prompts), -1).mean(1), dim=-1)


def classify(
    dual: Dual,
    samples: Sequence[Sample],
    classes: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    show: Show = Bar,
) -> np.ndarray:
    """Cosines [N C] of the samples' first images with the classes."""
    heads = class_vectors(dual, classes, prompts)
    return (_images(dual, samples, show) @ heads.T).numpy()


def zero_shot_accuracy(
    dual: Dual,
    samples: Sequence[Sample],
    classes: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    show: Show = Bar,
) -> dict[str, float]:
    """ "top-1", "top-5" and "per-class" (the mean over classes of their top-1) of samples whose
    meta["reference"] is one of the classes, as it is spelled or after folding. Raises DataError for
    one that is not."""
    labels = np.array([_class_of(sample, classes) for sample in samples])
    scores = classify(dual, samples, classes, prompts, show)
    each = [
        top_k(scores[labels == label], labels[labels == label], (1,))["top-1"]
        for label in np.unique(labels)
    ]
    return {**top_k(scores, labels, (1, 5)), "per-class": float(np.mean(each))}


def _class_of(sample: Sample, classes: Sequence[str]) -> int:
    reference = sample.meta["reference"]
    if reference in classes:
        return classes.index(reference)
    alike = [i for i, name in enumerate(classes) if exact_match(name, reference)]
    if len(alike) != 1:
        raise DataError(
            f"{sample.where}: '{reference}' is {'several' if alike else 'none'} of the "
            f"{len(classes)} classes"
        )
    return alike[0]


def retrieval(
    dual: Dual, samples: Sequence[Sample], at: Sequence[int] = (1, 5, 10), show: Show = Bar
) -> dict[str, float]:
    """ "image to text R@K" and "text to image R@K" of images with their captions
    (scoring.answers_of). Equal captions and images are each other's positives."""
    captions = [answers_of(s.meta) for s in samples]
    texts = list(dict.fromkeys(text for own in captions for text in own))
    place = {text: i for i, text in enumerate(texts)}
    match = np.zeros((len(samples), len(texts)), bool)
    for i, own in enumerate(captions):
        match[i, [place[text] for text in own]] = True
    vectors = torch.cat([dual.embed_texts(part) for part in batches(texts)])
    scores = (_images(dual, samples, show) @ vectors.T).numpy()
    found = {f"image to text {k}": v for k, v in recall_at(scores, match, at).items()}
    return found | {f"text to image {k}": v for k, v in recall_at(scores.T, match.T, at).items()}


def _images(dual: Dual, samples: Sequence[Sample], show: Show) -> Tensor:
    """Unit vectors [N D] of the first images. Raises DataError for a sample without one."""
    rows = []
    with show("images", len(samples), 0) as view:
        for part in batches(samples):
            for sample in part:
                if not sample.images:
                    raise DataError(f"{sample.where}: no image to embed; remove the sample")
            rows.append(dual.embed_images([sample.images[0].load() for sample in part]))
            for _ in part:
                view.advance()
    return torch.cat(rows)


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
