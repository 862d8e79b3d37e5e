"""Replies do not depend on what else is in the batch: token for token, both routes, fp32."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.progress import silent
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Message, Sample, Text, assistant
from chiasm.data.chat import CHATML
from chiasm.data.text import train_bpe
from chiasm.eval.identity import prompt_hashes
from chiasm.eval.runner import evaluate, flip_rate
from chiasm.eval.task import QuestionTask
from chiasm.generation.generator import Generator
from chiasm.hub import mllm, unified
from chiasm.mllm.config import MLLMConfig, MLPConfig, NativeConfig
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

WORDS = "what colour is it? is there a red circle or a blue square in the picture?"


def samples(count=200):
    """No, one or two images of many sizes, some shared by neighbours."""
    random = np.random.default_rng(0)
    images = [
        Image(
            PIL.Image.fromarray(random.integers(0, 256, (*random.integers(4, 33, 2), 3), np.uint8))
        )
        for _ in range(60)
    ]
    found = []
    for i in range(count):
        words = " ".join(random.choice(WORDS.split(), random.integers(1, 24)))
        shown = (images[i // 4], images[(i // 4 + 7) % 60])[: (1, 1, 0, 2, 1)[i % 5]]
        turn = Message("user", (*shown, Text(words)))
        found.append(Sample((turn, assistant("yes")), f"id{i}"))
    return found


def llama(folder):
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe([WORDS] * 4, 300),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[words.eos_token_id] *= 2
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Images of many sizes take as many tokens each.
    vision = ViT(ViTConfig(image_size=24, patch_size=4, width=16, layers=1, heads=2))
    images = NativeConfig(max_num_patches=36)
    return mllm.build(
        MLLMConfig(
            language_model=str(folder),
            projector=MLPConfig(merge=2),
            lora=None,
            image_processing=images,
        ),
        vision,
    )


def chameleon():
    torch.manual_seed(0)
    autoencoder = Autoencoder(
        AutoencoderConfig(
            quantizer=FSQConfig((4, 3)),
            image_size=16,
            base_channels=32,
            multipliers=(1, 1, 1),
            decoder_channels=64,
            decoder_blocks=1,
        )
    )
    shape = UnifiedConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48)
    model, processor = unified.build(shape, train_bpe([WORDS] * 4, 300), autoencoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
        model.lm_head.weight[model.vocabulary.end] *= 2
    return model, processor


@pytest.mark.parametrize("route", ["mllm", "unified"])
def test_batches_of_1_4_and_16_give_the_same_tokens(route, tmp_path):
    model, processor = llama(tmp_path / "llama") if route == "mllm" else chameleon()
    processor.template.decode = lambda ids: " ".join(map(str, ids))
    task = QuestionTask("mixed", samples())
    said = {}
    for batch in (1, 4, 16):
        out = tmp_path / f"{batch}.jsonl"
        evaluate(
            task, Generator(model, processor), SamplingParams(max_tokens=8), out, silent, batch
        )
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        said[batch] = {line["id"]: (line["reply"], line["finish"]) for line in lines}
    assert len(said[1]) == 200
    assert said[1] == said[4] == said[16]
    replies = {reply for reply, _ in said[1].values()}
    assert len(replies) > 100  # a model that always says the same would prove nothing
    assert {finish for _, finish in said[1].values()} == {"stop", "length"}
    few = [s.replace(turns=s.turns[:1]) for s in samples(40)]
    assert flip_rate(few, Generator(model, processor), SamplingParams(max_tokens=8)) == 0


def test_hashes_follow_prompt_and_pixels_apart(tmp_path):
    _, processor = llama(tmp_path / "llama")
    asked = QuestionTask("mixed", samples(20)).samples()
    base = prompt_hashes(processor, asked)
    assert base == prompt_hashes(processor, asked)
    processor.template.system = "look well"
    other = prompt_hashes(processor, asked)
    assert other["prompt_hash"] != base["prompt_hash"]
    assert other["processor_hash"] == base["processor_hash"]
    processor.template.system = None
    tampered = [
        s.replace(
            turns=tuple(
                Message(
                    t.role, tuple(_inverted(p) if isinstance(p, Image) else p for p in t.content)
                )
                for t in s.turns
            )
        )
        for s in asked
    ]
    changed = prompt_hashes(processor, tampered)
    assert changed["prompt_hash"] == base["prompt_hash"]
    assert changed["processor_hash"] != base["processor_hash"]


def _inverted(image):
    return Image(image.load().point(lambda level: 255 - level))
