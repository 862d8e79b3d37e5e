"""How likely a model finds replies that are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chiasm.core.batch import IGNORE, pack
from chiasm.core.sample import Sample
from chiasm.infer.generate import Generator, chunks
from chiasm.nn.loss import token_loss
from chiasm.nn.precision import autocast


@torch.inference_mode()
def reply_log_likelihood(respond: Generator, samples: Sequence[Sample]) -> list[float]:
    """log p(replies | what was said before) of each conversation, nats, summed over the supervised
    tokens. Raises DataError for a sample that cannot be encoded or has no reply."""
    model, found = respond.model.eval(), []
    for rows in chunks([respond.processor.encode(s) for s in samples], respond.tokens, len):
        batch = pack([[row] for row in rows]).to(respond.device)
        wanted = batch.targets != IGNORE
        with autocast(respond.precision, respond.device):
            logits = model.logits(model(batch)[wanted])
        nll, _ = token_loss(logits, batch.targets[wanted])
        total = nll.new_zeros(len(rows)).index_add_(0, wanted.nonzero()[:, 0], nll)
        found += (-total).tolist()
    return found
