"""Every kind of model over its real data goes on bit for bit: in mid-pack and mid-mixture, with
adapters, several times within one epoch."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chiasm.core.progress import silent
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.images import ImageProcessor, ImageStream
from chiasm.data.objectives import caption, chat, moved, text_to_image
from chiasm.data.stream import SampleStream
from chiasm.data.text import train_bpe
from chiasm.hub import mllm, unified
from chiasm.mllm.config import LoRAConfig, MLLMConfig, MLPConfig
from chiasm.train.loop import train
from chiasm.train.stage import Stage
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig, VQConfig
from chiasm.vision.config import ContrastiveConfig, ViTConfig
from chiasm.vision.contrastive import DualEncoder
from chiasm.vision.vit import ViT

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2)
CODES = AutoencoderConfig(
    VQConfig(codes=8, width=4, patience=1), 16, decoder_channels=64, decoder_blocks=1
)
WORDS = ["what colour is number it? a red circle user assistant noise 0 1 2 3 4 5"] * 4


def samples(count=7):
    random = np.random.default_rng(0)
    made = []
    for n in range(count):
        image = PIL.Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        turns = (
            user(Image(image), f"what is number {n}?"),
            assistant("it is red " * (n % 3 + 1)),
        )
        made.append(Sample(turns, f"s{n}", meta={"caption": f"noise {n % 3}"}))
    return made


def language(folder):
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(WORDS, 290),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    words.chat_template = CHATML
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder)
    words.save_pretrained(folder)


def build_mllm(folder):
    pytest.importorskip("peft")
    if not (folder / "config.json").exists():
        language(folder)
    torch.manual_seed(1)
    config = MLLMConfig(
        language_model=str(folder), projector=MLPConfig(merge=1), lora=LoRAConfig(rank=2, alpha=4.0)
    )
    model, processor = mllm.build(config, ViT(VISION))
    views = [moved(view, 2) for view in (chat, caption)]
    stages = {"projector": {"projector": 1e-2}, "lora": {"projector": 1e-2, "lora": 1e-2}}
    return model, stages, lambda _: SampleStream(samples(), views, processor, 90, 3)


def build_unified(_folder):
    torch.manual_seed(1)
    config = UnifiedConfig(
        hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=24, dropout=0.1
    )
    model, processor = unified.build(config, train_bpe(WORDS, 290), Autoencoder(CODES).eval())
    views = [chat, caption, lambda sample, random: text_to_image(sample, random, 0.3)]
    stages = {
        "embedding": {"embedding": 1e-2},
        "all": {"embedding": 1e-2, "transformer": 1e-2},
    }
    return model, stages, lambda _: SampleStream(samples(), views, processor, 60, 3)


def build_encoder(_folder):
    torch.manual_seed(1)
    config = ContrastiveConfig(
        vision=VISION, text_width=16, text_layers=1, text_heads=2, vocabulary=290, embedding=8
    )
    processor = ImageProcessor(16, 8, tokenizer=train_bpe(WORDS, 290))
    stages = {
        "vision": {"vision": 1e-2},
        "all": {"vision": 1e-2, "text": 1e-2, "temperature": 1e-2},
    }
    return DualEncoder(config), stages, lambda _: ImageStream(samples(), processor, 3, 3, 2, True)


def build_tokenizer(_folder):
    """Its codebook is made of buffers, drawn and moved at random."""
    torch.manual_seed(1)
    processor = ImageProcessor(16, CODES.stride)
    stages = {"decoder": {"decoder": 1e-2}, "all": {"encoder": 1e-2, "decoder": 1e-2}}
    return Autoencoder(CODES), stages, lambda _: ImageStream(samples(), processor, 3, 3, 2)


class KilledError(Exception):
    pass


def dying(stream_of, after):
    """The stages' data, until so many batches have been given out in all."""
    given = 0

    def make(stage):
        inner = stream_of(stage)

        class Dying:
            split, state_dict, load_state_dict = (
                inner.split,
                inner.state_dict,
                inner.load_state_dict,
            )

            def __iter__(self):
                nonlocal given
                for batch in inner:
                    if given == after:
                        raise KilledError
                    given += 1
                    yield batch

        return Dying()

    return make


BUILDERS = {
    "mllm": build_mllm,
    "unified": build_unified,
    "encoder": build_encoder,
    "tokenizer": build_tokenizer,
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_killed_again_and_again_it_equals_one_go(kind, tmp_path):
    def run(folder, after=None, optimizer="muon"):
        model, rates, stream_of = BUILDERS[kind](tmp_path / "language")
        stages = [
            Stage(
                name,
                4,
                lr=lr,
                gradient_accumulation_steps=2,
                save_every=1,
                optimizer=optimizer,
                ema=0.9,
            )
            for name, lr in rates.items()
        ]
        source = stream_of if after is None else dying(stream_of, after)
        train(model, stages, source, folder, show=silent, resume=True)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    for after in (3, 4, 5, 4):  # micro-batches, two a step: in the first stage, and across both
        with pytest.raises(KilledError):
            run(tmp_path / "cut", after)
    again = run(tmp_path / "cut")
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
