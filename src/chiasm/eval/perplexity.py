"""How well a model of either route predicts given conversations, text and images apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chiasm.core.batch import pack
from chiasm.core.progress import Bar, Show
from chiasm.core.sample import Sample
from chiasm.eval.metrics.perplexity import perplexity
from chiasm.generation.generator import Generator, chunks
from chiasm.nn.precision import autocast

MODALITIES = ("text", "image")


@torch.inference_mode()
def modality_perplexity(
    respond: Generator, samples: Sequence[Sample], show: Show = Bar
) -> dict[str, float]:
    """Modality -> exp of the mean negative log-likelihood of its supervised tokens: what the
    assistant says, and image codes where the model learns them. Those of different tokenizers do
    not compare. Raises DataError for a sample that cannot be encoded."""
    model, parts = respond.model.eval(), []
    with show("perplexity", len(samples), 0) as view:
        for start in range(0, len(samples), 256):
            rows = [respond.processor.encode(s) for s in samples[start : start + 256]]
            for chunk in chunks(rows, respond.tokens, len):
                batch = pack([[row] for row in chunk]).to(respond.device)
                with autocast(respond.precision, respond.device):
                    found = model.loss(batch).parts
                parts.append({name: found[name] for name in MODALITIES if name in found})
                for _ in chunk:
                    view.advance()
    return perplexity(parts)
