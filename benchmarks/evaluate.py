"""Evaluation: chiasm.eval.runner against the loop that most scripts are, one question at a time.

    mllm     thirty questions about three easy-VQA images with a language model of SmolLM2-135M's
             shape. The peer prepares each question's image, encodes it with the same encoder and
             projector, and calls LlamaForCausalLM.generate on inputs_embeds.
    unified  the same questions with the unified model's default shape. The peer turns each
             question's image into codes with the same tokenizer and calls generate on ids.

    ... alone  fifteen questions, each about an image of its own: nothing is shared, what is left
             is what batches bring.

Both: equal random weights, fp32, greedy, eight new tokens, batch 1 for the peer. Ours is the whole
of `evaluate`: prompts, replies, scores, and predictions written to a file as they come; the peer
only makes replies. A unit is a question. Before timing, three quarters of the replies must agree
(near-ties of the arithmetic may turn one).

The top-level numbers are those of the part with the smaller ratio.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.decode import Numbers, _mllm
from benchmarks.harness import alternate, report, result, rounds_argument
from benchmarks.train_unified import build, copy_weights, llama
from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa
from chiasm.data.processor import Processor
from chiasm.data.text import train_bpe
from chiasm.eval.runner import evaluate
from chiasm.eval.task import QuestionTask
from chiasm.generation.generator import Generator
from chiasm.mllm.codec import MLLMCodec
from chiasm.unified.config import UnifiedConfig

QUESTIONS, ALONE, NEW_TOKENS = 30, 15, 8
Reply = Callable[[Sample], list[int]]


def tasks_of(samples: Sequence[Sample]) -> dict[str, QuestionTask]:
    """All questions of few images, and one of each of many."""
    alone = [replace(sample, turns=sample.turns[:2]) for sample in samples]
    return {
        "": QuestionTask("easy-vqa", samples, limit=QUESTIONS),
        " alone": QuestionTask("easy-vqa", alone, limit=ALONE),
    }


def mllm(samples: Sequence[Sample]) -> tuple[Generator, Reply]:
    """Ours, and the peer's reply to one question as ids."""
    model, peer = _mllm()
    bpe = train_bpe([turn.text for s in samples for turn in s.turns], 400)
    codec = MLLMCodec(model.vision.config, model.projector, model.image_token)
    processor = Processor(Numbers(bpe), codec)

    @torch.inference_mode()
    def reply(sample: Sample) -> list[int]:
        encoded = processor.prompts([sample])[0][0]
        ids = torch.from_numpy(encoded.input_ids)[None]
        slots = ids == model.image_token
        grids = torch.from_numpy(encoded.image_grids)
        tokens = model.projector(
            model.vision(torch.from_numpy(encoded.image_patches), grids), grids
        )
        x = peer.get_input_embeddings()(ids.masked_fill(slots, 0))
        x = x.masked_scatter(slots[..., None], tokens)
        out = peer.generate(
            inputs_embeds=x, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
        return out[0].tolist()

    return Generator(model, processor), reply


def unified(samples: Sequence[Sample]) -> tuple[Generator, Reply]:
    """As mllm. Without QK-norm, which Llama has not, so that weights are equal."""
    config = UnifiedConfig(qk_norm=False)
    model, processor = build(config, samples)
    with torch.no_grad():
        for parameter in model.parameters():  # flat at first: every question gets one reply
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    vocabulary = model.vocabulary
    peer = llama(config, vocabulary.size).eval()
    copy_weights(model, peer)
    numbers = Numbers(processor.template.tokenizer)
    # Each side reads images itself: what one has seen the other must not find.
    ours = Processor(numbers, processor.codec)
    never = [i for i, word in enumerate(vocabulary.allow_text("cpu").tolist()) if not word]
    never.append(vocabulary.begin_image)

    @torch.inference_mode()
    def reply(sample: Sample) -> list[int]:
        ids = torch.from_numpy(ours.prompts([sample])[0][0].input_ids)[None]
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            suppress_tokens=never,
            pad_token_id=vocabulary.pad,
        )
        return out[0, ids.shape[1] :].tolist()

    return Generator(model.eval(), ours), reply


def measure(name: str, sides: tuple[Generator, Reply], task: QuestionTask, rounds: int) -> dict:
    generator, reply = sides
    sampling = SamplingParams(max_tokens=NEW_TOKENS)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.jsonl"

        def ours() -> float:
            return evaluate(task, generator, sampling, file, silent).n

        def peer() -> float:
            return len([reply(sample) for sample in task.samples()])

        ours()
        mine = [json.loads(line)["reply"] for line in file.read_text().splitlines()]
        theirs = [" ".join(map(str, reply(sample))) for sample in task.samples()]
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        if same < 0.75 * len(mine):
            raise SystemExit(f"evaluate: {name}: only {same} of {len(mine)} replies are the peer's")
        return result("questions/s", alternate(ours, peer, rounds))


def main() -> None:
    rounds = rounds_argument(__doc__, 3)
    torch.manual_seed(0)
    samples = easy_vqa.load("train")[:100]
    parts = {}
    for route, make in (("mllm", mllm), ("unified", unified)):
        sides = make(samples)
        for kind, task in tasks_of(samples).items():
            name = route + kind
            parts[name] = measure(name, sides, task, rounds)
            print(f"{name}: {parts[name]}", flush=True)
    report("evaluate", {**min(parts.values(), key=lambda part: part["ratio"]), "parts": parts})


if __name__ == "__main__":
    main()
