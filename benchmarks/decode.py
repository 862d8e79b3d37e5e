"""Decoding of both routes: chiasm.generation.generator.Generator against transformers' generate.

    unified  eight images of 64 codes, each after a short caption. The peer is the same model,
             exported as Emu3ForConditionalGeneration and read back, on left-padded prompts that end
             in begin-of-image, told to suppress every id that is no code (its documentation's
             prefix_allowed_tokens_fn is slower). Ours writes the two ids around the codes as well.
             Both decode all codes to pixels together, by our tokenizer. A unit is a code.
    guided   the same with classifier-free guidance, of one image and of eight. The peer is told
             guidance_scale and the bare prompt: its UnbatchedClassifierFreeGuidanceLogitsProcessor
             runs that beside the other.
    mllm     ten questions about one image of 64 visual tokens, eight new tokens each, with a
             language model of SmolLM2-135M's shape. Ours is one row with the questions as
             branches; the peer is ten left-padded rows of inputs_embeds, stock sdpa, its image
             encoded once and repeated. A unit is a new token.

All: random weights, the same on both sides, fp32, greedy, nothing that stops early. Building
prompts is timed for ours, not for the peer. Before timing, replies are checked to be equal;
near-ties of the arithmetic may turn one, so three quarters must agree.

The top-level numbers are those of the part with the smaller ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Emu3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import AttentionInterface

from benchmarks.harness import alternate, report, result, rounds_argument
from benchmarks.train_unified import build
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample, split_independent, user
from chiasm.core.vocab import Vocabulary
from chiasm.data import easy_vqa
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub.formats.emu3 import EMU3
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLPConfig
from chiasm.mllm.language import attention_forward
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors.mlp import MLPProjector
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

IMAGES, QUESTIONS, NEW_TOKENS = 8, 10, 8
GUIDANCE = 1.5
Replies = list


@dataclass(frozen=True)
class Sides:
    """What each side replies to the same prompts, and how many units that takes."""

    ours: Callable[[], Replies]
    peer: Callable[[], Replies]
    units: int

    def check(self, name: str) -> None:
        pairs = list(zip(self.ours(), self.peer(), strict=True))
        same = sum(mine == theirs for mine, theirs in pairs)
        if same < 0.75 * len(pairs):
            raise SystemExit(f"decode: {name}: only {same} of {len(pairs)} replies are the peer's")

    def measure(self, unit: str, rounds: int) -> dict:
        def counted(side: Callable[[], Replies]) -> Callable[[], float]:
            return lambda: (side(), self.units)[1]

        return result(unit, alternate(counted(self.ours), counted(self.peer), rounds))


def drawing(samples: Sequence[Sample], images: int, guidance: float = 1.0) -> Sides:
    """So many captions to draw; replies are the pixels."""
    model, processor = build(UnifiedConfig(qk_norm=False), samples)
    vocabulary, codec = model.vocabulary, processor.codec
    peer = _exported(model, processor)
    others = [i for i in range(peer.config.text_config.vocab_size) if not _draws(vocabulary, i)]
    asked = [Sample((user(caption),)) for caption in easy_vqa.CAPTIONS[:: 24 // images]]
    rows = [
        [*encoded.input_ids.tolist(), vocabulary.begin_image]
        for encoded, _ in processor.prompts(asked)
    ]
    ids, mask = left_padded(rows, vocabulary.pad)
    guided = {}
    if guidance != 1.0:
        bare = [processor.unconditional(one).input_ids.tolist() for one in asked]
        told = left_padded([[*row, vocabulary.begin_image] for row in bare], vocabulary.pad)
        guided = dict(
            zip(("negative_prompt_ids", "negative_prompt_attention_mask"), told, strict=True)
        )
        guided["guidance_scale"] = guidance
    generator = Generator(model, processor)
    sampling = SamplingParams(max_images=1, draw_first=True, guidance=guidance)

    def ours() -> Replies:
        pieces = sorted(
            ((i, p.image) for i, p in generator(asked, sampling) if p.image),
            key=lambda piece: piece[0],
        )
        return [image.tobytes() for _, image in pieces]

    def theirs() -> Replies:
        with torch.inference_mode():
            out = peer.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=codec.codes_per_image,
                do_sample=False,
                suppress_tokens=others,
                pad_token_id=vocabulary.pad,
                **guided,
            )
            drawn = codec.decode_all(list(out[:, ids.shape[1] :]), [None] * images)
            return [one.tobytes() for one in drawn]

    return Sides(ours, theirs, images * codec.codes_per_image)


def _exported(model: Unified, processor: Processor) -> Emu3ForConditionalGeneration:
    """The model as the class of transformers; it never stops by itself."""
    with tempfile.TemporaryDirectory() as folder:
        EMU3.export(model, processor, Path(folder) / "emu3")
        peer = Emu3ForConditionalGeneration.from_pretrained(Path(folder) / "emu3").eval()
    peer.generation_config.eos_token_id = None
    return peer


def _draws(vocabulary: Vocabulary, token: int) -> bool:
    return vocabulary.first_code <= token < vocabulary.size


class Numbers(RoleTemplate):
    """Never stops, and writes ids as numbers, so that replies over any vocabulary compare."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.stop = ()

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def answering(samples: Sequence[Sample]) -> Sides:
    """QUESTIONS about one image; replies are the new ids."""
    model, peer = _mllm()
    bpe = train_bpe([turn.text for s in samples for turn in s.turns], 400)
    codec = MLLMCodec(model.vision.config, model.projector, model.image_token)
    processor = Processor(Numbers(bpe), codec)
    chosen = next(s for s in samples if len(s.turns) >= 2 * QUESTIONS)
    asked = [s.replace(turns=s.turns[:1]) for s in split_independent(chosen)[:QUESTIONS]]
    prompts = [processor.prompts([sample])[0][0] for sample in asked]
    ids, mask = left_padded([encoded.input_ids.tolist() for encoded in prompts], 0)
    patches, grids = (
        torch.from_numpy(prompts[0].image_patches),
        torch.from_numpy(prompts[0].image_grids),
    )
    generator = Generator(model, processor)
    sampling = SamplingParams(max_tokens=NEW_TOKENS)

    def ours() -> Replies:
        replies = [""] * QUESTIONS
        for number, piece in generator(asked, sampling):
            replies[number] += piece.text
        return replies

    def theirs() -> Replies:
        with torch.inference_mode():
            slots = ids == model.image_token
            tokens = model.projector(model.vision(patches, grids), grids)
            x = peer.get_input_embeddings()(ids.masked_fill(slots, 0))
            x = x.masked_scatter(slots[..., None], tokens.repeat(QUESTIONS, 1))
            out = peer.generate(
                inputs_embeds=x,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=0,
            )
        return [" ".join(map(str, row)) for row in out.tolist()]

    return Sides(ours, theirs, QUESTIONS * NEW_TOKENS)


def _mllm() -> tuple[MLLM, LlamaForCausalLM]:
    """An MLLM over SmolLM2-135M's shape, and the stock language model with its weights."""
    AttentionInterface.register("chiasm", attention_forward)
    # At 0.02 attention is so flat that every question gets the same reply: nothing to check.
    config = LlamaConfig(
        initializer_range=0.06,
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    peer = LlamaForCausalLM(config).eval()
    # A copy: the model writes its attn_implementation into the config it is given.
    ours = LlamaForCausalLM._from_config(deepcopy(config), attn_implementation="chiasm")
    ours.load_state_dict(peer.state_dict())
    vision = ViT(ViTConfig())
    projector = MLPProjector(MLPConfig(merge=1), vision.config.width, config.hidden_size, 0.02)
    # A placeholder outside the vocabulary, so that no random reply can write it.
    return MLLM(vision, projector, ours, config.vocab_size).eval(), peer


def left_padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def main() -> None:
    rounds = rounds_argument(__doc__, 7)
    torch.manual_seed(0)
    samples = easy_vqa.load("train")[:100]
    jobs = {
        "unified": (drawing(samples, IMAGES), "codes/s"),
        "guided 1": (drawing(samples, 1, GUIDANCE), "codes/s"),
        f"guided {IMAGES}": (drawing(samples, IMAGES, GUIDANCE), "codes/s"),
        "mllm": (answering(samples), "tokens/s"),
    }
    parts = {}
    for name, (sides, unit) in jobs.items():
        sides.check(name)
        parts[name] = sides.measure(unit, rounds)
        print(f"{name}: {parts[name]}", flush=True)
    report("decode", {**min(parts.values(), key=lambda part: part["ratio"]), "parts": parts})


if __name__ == "__main__":
    main()
