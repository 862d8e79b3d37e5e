"""How likely a model finds replies that are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from chiasm.core.batch import Batch, Encoded, pack
from chiasm.core.errors import DataError
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Sample
from chiasm.generation.generator import Generator, chunks
from chiasm.nn.loss import token_loss
from chiasm.nn.precision import autocast

AT_ONCE = 64
"""Labels that share one trunk: their words weigh more than the image from about there on."""


def reply_log_likelihood(respond: Generator, samples: Sequence[Sample]) -> list[float]:
    """log p(replies | what was said before) of each conversation, nats, summed over the supervised
    tokens. Raises DataError for a sample that cannot be encoded or has no reply."""
    rows = [respond.processor.encode(sample) for sample in samples]
    return [float(sums.sum()) for sums in _sums(respond, rows)]


def label_log_likelihood(
    respond: Generator, samples: Sequence[Sample], labels: Sequence[Sequence[str]]
) -> Iterator[list[float]]:
    """log p(label | conversation that ends with the user's turn), nats, of each sample's labels as
    the whole reply, its end included; sample by sample, as they are computed. They are branches of
    one trunk: the images are computed once, and each label is read as if it stood alone. Raises
    DataError."""
    rows, counts = [], []
    for sample, own in zip(samples, labels, strict=True):
        parts = [own[start : start + AT_ONCE] for start in range(0, len(own), AT_ONCE)]
        rows += [respond.processor.alternatives(sample, part) for part in parts]
        counts.append([len(part) for part in parts])
    sums = _sums(respond, rows)
    for parts in counts:
        found: list[float] = []
        for count in parts:
            own = next(sums)
            found += own[1 : count + 1].tolist() if count > 1 else own[:1].tolist()
        yield found


class LabelResponder:
    """A `Generate` (core.protocols) that says the likeliest of given labels instead of generating.

    labels: what may be said to a sample. Longer labels have more factors below 1; they are not
    compensated, for the product is the probability of the reply.
    """

    def __init__(self, respond: Generator, labels: Callable[[Sample], Sequence[str]]):
        self.respond, self.labels = respond, labels

    def __call__(
        self, samples: Sequence[Sample], sampling: SamplingParams
    ) -> Iterator[tuple[int, StreamChunk]]:
        """One whole reply a sample; sampling has no say. Raises DataError for a sample without
        labels or one that cannot be encoded."""
        labels = [list(self.labels(sample)) for sample in samples]
        for sample, own in zip(samples, labels, strict=True):
            if not own:
                raise DataError(f"{sample.where}: no labels to choose from")
        for i, scores in enumerate(label_log_likelihood(self.respond, samples, labels)):
            yield i, StreamChunk(labels[i][scores.index(max(scores))], finish="stop")


def _sums(respond: Generator, rows: Sequence[Encoded]) -> Iterator[Tensor]:
    """Of each row its supervised tokens' log-likelihood by branch [branches]."""
    respond.model.eval()
    for chunk in chunks(rows, respond.tokens, len):
        # Inside the context only while computing: a generator must not leak it to its caller.
        with torch.inference_mode():
            total = _of_chunk(respond, pack([[row] for row in chunk]))
        yield from total


def _of_chunk(respond: Generator, host: Batch) -> Tensor:
    """[rows branches] in main memory."""
    batch, model = host.to(respond.device), respond.model
    wanted = batch.supervised
    with autocast(respond.precision, respond.device):
        logits = model.logits(model(batch).flatten(0, 1)[wanted])
    nll, _ = token_loss(logits, batch.labels.flatten()[wanted])
    total = torch.zeros(host.input_ids.shape[0], int(host.branch_ids.max()) + 1, dtype=nll.dtype)
    place = host.supervised
    where = (place // host.input_ids.shape[1], host.branch_ids.flatten()[place])
    return total.index_put_(where, -nll.cpu(), accumulate=True)
