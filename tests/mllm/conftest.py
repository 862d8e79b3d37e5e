"""`toy`: tiny random language models with an encoder, for the tests of the MLLM's options."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.text import train_bpe
from chiasm.hub import mllm as hub
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def image(width=24, height=24, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image(PIL.Image.fromarray(pixels))


VISION = ViTConfig(image_size=24, patch_size=4, width=16, layers=2, heads=2, max_patches=12)


@dataclass
class Toy:
    """folders: name of a family -> a checkpoint of it with a tokenizer for chats."""

    folders: dict[str, Path]

    def config(self, family="llama", **settings):
        settings = {"projector": MLPConfig(merge=2), "lora": None, **settings}
        return MLLMConfig(language_model=str(self.folders[family]), **settings)

    def build(self, family="llama", vision=None, **settings):
        torch.manual_seed(1)
        model, processor = hub.build(self.config(family, **settings), ViT(vision or VISION))
        return model.eval(), processor

    def samples(self):
        """A dialogue, plain text, independent questions, two images of which one is later."""
        dialogue = (
            user(image(20, 24), "what colour?"),
            assistant("red"),
            user("shape?"),
            assistant("a circle"),
        )
        apart = (
            user(image(24, 8, 1), "what?"),
            assistant("blue"),
            user("is it?"),
            assistant("yes it is red"),
        )
        two = (
            user(image(8, 8, 2), "what?"),
            assistant("it"),
            user("and ", image(16, 24, 3), "?"),
            assistant("red circle"),
        )
        return [
            Sample(dialogue, "dialogue"),
            Sample((user("is it red?"), assistant("no")), "text"),
            Sample(apart, "branches", independent=True),
            Sample(two, "two"),
        ]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["what colour is it? red circle user assistant"] * 4, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = CHATML
    llama = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    gpt2 = GPT2Config(
        vocab_size=len(words),
        n_embd=16,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
    )
    models = {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}
    folders = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.save_pretrained(folders[name])
        words.save_pretrained(folders[name])
    return Toy(folders)
