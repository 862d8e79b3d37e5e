"""Training the unified model against transformers' LlamaForCausalLM of the same shape.

Both learn the same pairs from the same weights' shape: images of easy-VQA with about ten
questions each, and captions with the image to draw, half and half as the recipe mixes them.

    ours   one row of at most 2,048 tokens a step: an image's codes once, its questions as
           branches; the loss of chiasm.unified.model.Unified (QK-norm and z-loss on, as by
           default), logits only where there is a target
    peer   the stock way: every question a row of its own with the image repeated, rows padded
           on the right with an attention mask, sdpa, the model's own labels= loss

Both: the same precision (--precision; by default what is faster here), AdamW (fused), gradients
clipped at 1. A unit is a pair: one question with its answer
or one caption with its image. A step teaches both sides the same targets: the peer's repeated
images carry labels in their first row only, and before timing the two losses are checked to be
equal with equal weights (QK-norm, z-loss and image_weight off, which Llama has not). Encoding and
collating are not timed. Chameleon, which has the QK-norm, cannot be the peer: its stock forward
sets the logits of all image codes to -inf, so it cannot learn to draw. The peer therefore does
less work a token.

Extra keys: tokens a second of each side (padding not counted), and tokens a step of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import (
    Precision,
    Run,
    alternate,
    report,
    result,
    round_to,
    training_arguments,
)
from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.sample import Sample, split_independent
from chiasm.core.vocab import Vocabulary
from chiasm.data import easy_vqa
from chiasm.data.objectives import chat, text_to_image
from chiasm.data.processor import Processor
from chiasm.data.text import train_bpe
from chiasm.hub import unified
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.unified.model import Unified

TOKENS = 2048
STEPS = 2


@dataclass(frozen=True)
class Step:
    """The same pairs for either side."""

    ours: Batch
    peer: dict[str, Tensor]
    pairs: int


def build(config: UnifiedConfig, samples: Sequence[Sample]) -> tuple[Unified, Processor]:
    """A model with random weights, 512 codes of an untrained tokenizer and a BPE of the samples."""
    texts = [turn.text for sample in samples for turn in sample.turns]
    bpe = train_bpe(texts, config.text_vocabulary)
    return unified.build(config, bpe, Autoencoder(AutoencoderConfig()))


def llama(config: UnifiedConfig, vocabulary: int) -> LlamaForCausalLM:
    """The stock model of the same shape; it never stops by itself."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=1e-5,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def copy_weights(model: Unified, peer: LlamaForCausalLM) -> None:
    """Give the peer our weights; only possible without QK-norm."""
    prefix = {name: "" if name.startswith("lm_head") else "model." for name in model.state_dict()}
    peer.load_state_dict({prefix[k] + k: v for k, v in model.state_dict().items()})


def make_steps(
    samples: Sequence[Sample], processor: Processor, vocabulary: Vocabulary
) -> list[Step]:
    """STEPS steps whose side of ours fills a row of TOKENS."""
    steps: list[Step] = []
    row: list[Encoded] = []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for sample in _views(samples):
        encoded = processor.encode(sample)
        if sum(map(len, row)) + len(encoded) > TOKENS:
            steps.append(Step(pack([row]), _collate(parts, vocabulary.pad), len(parts)))
            if len(steps) == STEPS:
                return steps
            row, parts = [], []
        row.append(encoded)
        parts += _rows(sample, processor, vocabulary)
    raise ValueError(f"{len(samples)} samples fill only {len(steps)} steps; give more")


def _views(samples: Sequence[Sample]) -> Iterator[Sample]:
    random = np.random.default_rng(0)
    for number, sample in enumerate(samples):
        seen = text_to_image(sample, random) if number % 2 else chat(sample, random)
        if seen is not None:
            yield seen


def _rows(
    sample: Sample, processor: Processor, vocabulary: Vocabulary
) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and labels of every pair by itself; an image is learnt in its first row only."""
    rows = []
    for number, part in enumerate(split_independent(sample)):
        alone = processor.encode(part)
        labels = np.concatenate([[IGNORE], alone.labels[:-1]])
        if number:
            around = np.isin(alone.input_ids, [vocabulary.begin_image, vocabulary.end_image])
            labels[around | (alone.input_ids >= vocabulary.first_code)] = IGNORE
        rows.append((alone.input_ids, labels))
    return rows


def _collate(rows: list[tuple[np.ndarray, np.ndarray]], pad: int) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for number, (row, wanted) in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
        labels[number, : len(row)] = torch.from_numpy(wanted)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def check(step: Step, samples: Sequence[Sample]) -> None:
    """Equal weights must give equal losses, or the two sides are not taught the same."""
    config = UnifiedConfig(qk_norm=False, z_loss=0.0, image_weight=1.0)
    model, _ = build(config, samples)
    peer = llama(config, model.vocabulary.size)
    copy_weights(model, peer)
    with torch.no_grad():
        loss = model.loss(step.ours)
        mine, theirs = float(loss.sum) / loss.count, float(peer(**step.peer).loss)
    if abs(mine - theirs) > 1e-4 * theirs:
        raise SystemExit(f"train_unified: losses differ, ours {mine:.6f}, the peer's {theirs:.6f}")


def ours_run(model: Unified, steps: Sequence[Step], precision: Precision) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        for step in steps:
            with precision():
                loss = model.loss(step.ours)
            update(model, optimizer, loss.sum / loss.count)
        return sum(step.pairs for step in steps)

    return run


def peer_run(model: LlamaForCausalLM, steps: Sequence[Step], precision: Precision) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        for step in steps:
            with precision():
                loss = model(**step.peer).loss
            update(model, optimizer, loss)
        return sum(step.pairs for step in steps)

    return run


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    rounds, precision = training_arguments(__doc__, 7)
    torch.manual_seed(0)
    samples = easy_vqa.load("train")[:100]
    config = UnifiedConfig()
    model, processor = build(config, samples)
    steps = make_steps(samples, processor, model.vocabulary)
    check(steps[0], samples)
    peer = llama(config, model.vocabulary.size)
    mine = sum(step.ours.tokens for step in steps)
    theirs = sum(int(step.peer["attention_mask"].sum()) for step in steps)
    print(
        f"{STEPS} steps: {sum(s.pairs for s in steps)} pairs, {mine} tokens for ours, "
        f"{theirs} for the peer; {rounds} rounds in {precision.name}",
        flush=True,
    )
    measured = alternate(
        ours_run(model.train(), steps, precision), peer_run(peer.train(), steps, precision), rounds
    )
    pairs = result("pairs/s", measured)
    report(
        "train_unified",
        dict(
            pairs,
            parts={precision.name: pairs},
            ours_tokens_per_second=round_to(mine / measured.ours_seconds),
            peer_tokens_per_second=round_to(theirs / measured.peer_seconds),
            ours_tokens_per_step=mine // STEPS,
            peer_tokens_per_step=theirs // STEPS,
        ),
    )


if __name__ == "__main__":
    main()
