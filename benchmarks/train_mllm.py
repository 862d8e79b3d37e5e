"""Training an MLLM against transformers' own LlavaForConditionalGeneration, on the same weights.

Both learn the same conversations about images of easy-VQA: every other one is a question and its
answer, the rest are all questions about the image, about ten. Padded rows are then 1.7 times what
is in them, as are random batches of real sets (photographs with a caption, charts and tables with a
question, receipts with four) at 64 tokens an image. The encoder is frozen, projector and language
model are trained (LLaVA's second stage, 2304.08485, section 4.2).

    ours   the checkpoint as chiasm.hub.load reads it: the conversations of a step end to end in one
           row, features from the cache (as in every epoch but the first), logits only where
           there is a target
    peer   the stock way: every conversation a row, padded on the right to the longest, attention
           mask, sdpa, the model's own labels= loss

Both: the same precision (--precision; by default what is faster here), AdamW (fused), gradients
clipped at 1, CONVERSATIONS a step. The shapes are SmolLM2-135M
with a tenth of its layers and a tenth of its words, so that the head keeps its share, and
SigLIP-B/16 with a twelfth of its layers; an image is 64 tokens. A unit is a conversation. Encoding
and collating are not timed; before timing, losses and the norms of the gradients are checked to be
equal.

Parts: `all` is ours against the peer; `without packing`, `without cache` and `without gathering`
(logits of every token) are ours against ours with that one taken away, so what it brings; `without
any` is ours with all three taken away against the peer, so what the rest brings. The top-level
numbers are those of `all`.

Extra keys: peak memory (MB) of a process that does nothing but train one side, with its modules and
weights (`ours_peak_mb`, `peer_peak_mb`) and before its first step (`start_mb`); a step's tokens,
the tokens that the peer's rows have with their padding, and the targets.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.harness import (
    Precision,
    Run,
    alternate,
    report,
    result,
    round_to,
    training_arguments,
)
from benchmarks.train_unified import update
from chiasm.core.batch import IGNORE, Batch, Encoded, pack
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa
from chiasm.data.text import train_bpe
from chiasm.hub.load import load
from chiasm.mllm.model import MLLM
from chiasm.train.feature_cache import open_cache

CONVERSATIONS = 16
SIDE, PATCH = 64, 8
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True)
class Levers:
    """What ours does otherwise than the stock loop."""

    packing: bool = True
    cache: bool = True
    gathering: bool = True


@dataclass(frozen=True)
class Step:
    """The same conversations packed, in padded rows for ours, and in padded rows for the peer."""

    packed: Batch
    padded: Batch
    peer: dict[str, Tensor]


def checkpoint(folder: Path, samples: Sequence[Sample]) -> None:
    """A stock LLaVA checkpoint with random weights and a BPE of the samples."""
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe([turn.text for s in samples for turn in s.turns], 400),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    language = LlamaConfig(
        vocab_size=4915,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    vision = SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=1,
        num_attention_heads=12,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def conversations(samples: Sequence[Sample]) -> list[Sample]:
    """Every other one with its first question alone."""
    return [
        sample.replace(turns=sample.turns[:2] if number % 2 else sample.turns, independent=False)
        for number, sample in enumerate(samples)
    ]


def make_step(folder: Path, samples: Sequence[Sample], processor: Any) -> Step:
    encoded = [processor.encode(sample) for sample in samples]
    to_pixels = LlavaProcessor.from_pretrained(folder).image_processor
    images = [sample.images[0].load() for sample in samples]
    pixels = to_pixels(images, return_tensors="pt")["pixel_values"]
    return Step(pack([encoded]), pack([[one] for one in encoded]), collate(encoded, pixels))


def collate(encoded: Sequence[Encoded], pixels: Tensor) -> dict[str, Tensor]:
    """Rows padded on the right, labels where ours has targets."""
    longest = max(map(len, encoded))
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for number, one in enumerate(encoded):
        ids[number, : len(one)] = torch.from_numpy(one.input_ids)
        labels[number, 1 : len(one)] = torch.from_numpy(one.labels[:-1])
        mask[number, : len(one)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def stock(folder: Path) -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    model.model.vision_tower.requires_grad_(False)
    return model.train()


def own(folder: Path) -> tuple[MLLM, Any]:
    model, processor = load(folder)
    model.vision.requires_grad_(False)
    return model.train(), processor


def mean_loss(model: MLLM, step: Step, levers: Levers) -> Tensor:
    batch = step.packed if levers.packing else step.padded
    if levers.gathering:
        loss = model.loss(batch)
        return loss.sum / loss.count
    logits = model.logits(model(batch)).flatten(0, 1)
    return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE)


def ours_run(model: MLLM, step: Step, precision: Precision, levers: Levers = Levers()) -> Run:
    optimizer = _adamw(model)
    memory = open_cache(model.vision, 1e9) if levers.cache else None

    def run() -> float:
        model.memory = memory
        with precision():
            loss = mean_loss(model, step, levers)
        update(model, optimizer, loss)
        return CONVERSATIONS

    return run


def peer_run(model: LlavaForConditionalGeneration, step: Step, precision: Precision) -> Run:
    optimizer = _adamw(model)

    def run() -> float:
        with precision():
            loss = model(**step.peer).loss
        update(model, optimizer, loss)
        return CONVERSATIONS

    return run


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5, fused=True)


def check(model: MLLM, peer: LlavaForConditionalGeneration, step: Step) -> None:
    """Equal weights must give equal losses and gradients, with every lever and without."""
    expected = _loss_and_norm(peer, peer(**step.peer).loss)
    for levers in (Levers(), Levers(False, False, False)):
        found = _loss_and_norm(model, mean_loss(model, step, levers))
        if any(abs(a - b) > 1e-4 * b for a, b in zip(found, expected, strict=True)):
            raise SystemExit(f"train_mllm: loss and gradient {found}, the peer's {expected}")


def _loss_and_norm(model: torch.nn.Module, loss: Tensor) -> tuple[float, float]:
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return loss.item(), norm.item()


def peak(
    folder: Path, samples: Sequence[Sample], side: str, precision: Precision
) -> tuple[float, float]:
    """MB that this process holds before it trains `side`, and at most while it does."""
    model, processor = own(folder)
    step = make_step(folder, samples, processor)
    if side == "ours":
        run = ours_run(model, step, precision)
    else:
        del model
        run = peer_run(stock(folder), step, precision)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = _resident("VmHWM")
    run()
    return before, _resident("VmHWM")


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def measure_memory(
    folder: Path, samples: Sequence[Sample], side: str, precision: Precision
) -> tuple[float, float]:
    """peak in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(peak, folder, samples, side, precision).result()


def measure(folder: Path, samples: Sequence[Sample], rounds: int, precision: Precision) -> dict:
    model, processor = own(folder)
    step = make_step(folder, samples, processor)
    peer = stock(folder)
    check(model, peer, step)
    everything, stock_way = ours_run(model, step, precision), peer_run(peer, step, precision)
    whole = f"all, {precision.name}"
    parts = {whole: result("conversations/s", alternate(everything, stock_way, rounds))}
    print(parts, flush=True)
    for name in ("packing", "cache", "gathering"):
        less = ours_run(model, step, precision, replace(Levers(), **{name: False}))
        parts[f"without {name}"] = result("conversations/s", alternate(everything, less, rounds))
    bare = ours_run(model, step, precision, Levers(False, False, False))
    parts["without any"] = result("conversations/s", alternate(bare, stock_way, rounds))
    return {
        **parts[whole],
        "parts": parts,
        "tokens_per_step": step.packed.tokens,
        "peer_tokens_per_step": step.peer["input_ids"].numel(),
        "targets_per_step": int((step.packed.labels != IGNORE).sum()),
    }


def main() -> None:
    rounds, precision = training_arguments(__doc__, 5)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "stock"
        os.environ["CHIASM_CACHE"] = str(Path(place) / "cache")
        samples = conversations(easy_vqa.load("train")[:CONVERSATIONS])
        checkpoint(folder, samples)
        said = measure(folder, samples, rounds, precision)
        start, ours = measure_memory(folder, samples, "ours", precision)
        _, peer = measure_memory(folder, samples, "peer", precision)
    memory = {"start_mb": start, "ours_peak_mb": ours, "peer_peak_mb": peer}
    report("train_mllm", {**said, **{name: round_to(value) for name, value in memory.items()}})


if __name__ == "__main__":
    main()
