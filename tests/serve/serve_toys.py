"""Toy models of both routes and an encoder, images, and a real server on a free port."""

import asyncio
import base64
import io
import threading
import time
from dataclasses import dataclass

import httpx2 as httpx
import numpy as np
import openai
import PIL.Image
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.sample import Image
from chiasm.data.text import train_bpe
from chiasm.generation.generator import Generator
from chiasm.hub import contrastive, mllm, unified
from chiasm.mllm.config import MLLMConfig, MLPConfig
from chiasm.serve.app import create_app
from chiasm.serve.limits import Limits
from chiasm.serve.server import Server
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, FSQConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.dual import OwnDual
from chiasm.vision.vit import ViT

KEY = "a-key-for-tests"
http = httpx.Client(timeout=300)
WORDS = ["what colour is it? red circle user assistant", '{"colour": "red", "count": 12}, true']
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VIT = ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2)


def words():
    return train_bpe(WORDS * 4, 300)


def drawing_toy(**settings):
    """A random unified model, lively enough to end replies and begin images by itself."""
    tokens = AutoencoderConfig(
        quantizer=FSQConfig((4, 3)),
        image_size=8,
        base_channels=32,
        multipliers=(1, 1, 1),
        decoder_channels=64,
        decoder_blocks=1,
    )
    shape = UnifiedConfig(
        hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, **settings
    )
    model, processor = unified.build(shape, words(), Autoencoder(tokens))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (*processor.codec.autoencoder.parameters(), *model.parameters()):
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
        model.lm_head.weight[[model.vocabulary.end, model.vocabulary.begin_image]] *= 3
    return Generator(model.eval(), processor)


def reading_toy(folder, projector=None, **settings):
    """A random MLLM."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words(),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    tokenizer.chat_template = CHATML
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        llama.lm_head.weight[tokenizer.eos_token_id] *= 2.5
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    projector = projector or MLPConfig(merge=2)
    config = MLLMConfig(language_model=str(folder), projector=projector, lora=None, **settings)
    model, processor = mllm.build(config, ViT(VIT))
    with torch.no_grad():
        for name, parameter in model.projector.named_parameters():
            if "gate" in name:  # closed at first: images would not be seen
                parameter.fill_(1.0)
    return Generator(model.eval(), processor)


def embedding_toy():
    config = ContrastiveConfig(
        vision=VIT, embedding=8, text_width=16, text_layers=1, text_heads=2, vocabulary=300
    )
    torch.manual_seed(2)
    return OwnDual(DualEncoder(config), contrastive.image_processor(config, words()))


def pixels(seed, size=(8, 8)):
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return PIL.Image.fromarray(array)


def image(seed):
    return Image(pixels(seed))


def encoded(image, kind="PNG"):
    held = io.BytesIO()
    image.save(held, kind)
    return held.getvalue()


def data_url(image, kind="PNG"):
    content = base64.b64encode(encoded(image, kind)).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def image_part(image):
    return {"type": "image_url", "image_url": {"url": data_url(image), "detail": "auto"}}


@dataclass
class Running:
    server: Server
    port: int

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, key=KEY, **options):
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300, **options
        )

    def idle(self, seconds=60.0):
        """Whether all rows become free in time."""
        engines = [s.engine for s in self.server.models.values() if s.engine]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not any(e.cache.held or e._waiting for e in engines) and not self.server.budget.held:
                return True
            time.sleep(0.01)
        return False


class Background:
    """uvicorn on a thread."""

    def __init__(self, models, limits=None, **settings):
        self.server = Server(models, limits or Limits(), **settings)
        config = uvicorn.Config(
            create_app(self.server, KEY), port=0, log_level="warning", lifespan="on", ws="none"
        )
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve()))

    def __enter__(self):
        self.thread.start()
        until = time.monotonic() + 120
        while not self.uvicorn.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        return Running(self.server, port)

    def __exit__(self, *_):
        self.uvicorn.should_exit = True
        self.thread.join(60)
