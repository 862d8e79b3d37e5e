"""Tiny random checkpoints as transformers writes them, and ours beside them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from chiasm.core.sample import Image
from chiasm.data.text import train_bpe

DATA = Path("/work/shared/data")
SIDE, PATCH = 28, 7
SQUARE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]

# As published for LLaVA 1.5 in spirit: parts, images first, nothing at the end of a reply.
LISTED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def words(begins=True):
    """A tokenizer that, as Llama's, puts <s> before every text."""
    made = train_bpe(["what colour is it? red circle USER: ASSISTANT: \n"] * 4, 290)
    if begins:
        made.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def tower(kind):
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    if kind == "clip":
        return hf.CLIPVisionConfig(**shape, projection_dim=8)
    return hf.SiglipVisionConfig(**shape, vision_use_head=False)


def llama(tokenizer, **changes):
    return hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def gemma(tokenizer, kind):
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "gemma":
        return hf.GemmaConfig(**shape)
    return hf.Gemma2Config(**shape, sliding_window=4096, query_pre_attn_scalar=8)


def llava(kind="clip", images=None, layer=-2, strategy=None, **language):
    """(model, processor) of LLaVA with this tower."""
    tokenizer = words()
    strategy = strategy or ("default" if kind == "clip" else "full")
    config = hf.LlavaConfig(
        vision_config=tower(kind),
        text_config=llama(tokenizer, **language),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=16,
    )
    if images is None and kind == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = hf.LlavaProcessor(
        images or SiglipImageProcessorPil(size=SQUARE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(kind == "clip"),
        chat_template=LISTED,
    )
    return _random(hf.LlavaForConditionalGeneration, config), processor


def padded():
    return llava(
        images=LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": SIDE}, crop_size=SQUARE)
    )


def llava_next(kind="clip"):
    tokenizer = words()
    strategy = "default" if kind == "clip" else "full"
    config = hf.LlavaNextConfig(
        vision_config=tower(kind),
        text_config=llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(kind == "clip"),
        chat_template=LISTED,
    )
    return _random(hf.LlavaNextForConditionalGeneration, config), processor


def paligemma(kind="gemma"):
    tokenizer = words(begins=False)
    images = SiglipImageProcessorPil(size=SQUARE, image_seq_length=16)
    processor = hf.PaliGemmaProcessor(images, tokenizer)  # adds <loc…> and <seg…>
    config = hf.PaliGemmaConfig(
        vision_config=tower("siglip"),
        text_config=gemma(tokenizer, kind),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        hidden_size=16,
        vocab_size=len(tokenizer),
    )
    return _random(hf.PaliGemmaForConditionalGeneration, config), processor


def _random(kind, config):
    """With weights large enough for every part to show in the logits."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


STOCK = {
    "llava-clip": llava,
    "llava-siglip": lambda: llava("siglip"),
    "llava-padded": padded,
    "llava-class-token": lambda: llava(strategy="full"),
    "llava-two-layers": lambda: llava(layer=[-3, -1]),
    "llava-tied": lambda: llava(tie_word_embeddings=True),
    "next-clip": llava_next,
    "next-siglip": lambda: llava_next("siglip"),
    "paligemma": paligemma,
    "paligemma2": lambda: paligemma("gemma2"),
}


def write(name, folder, dtype=torch.float32):
    """The stock model and processor of a name, saved as this version of transformers does."""
    model, processor = STOCK[name]()
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.float(), processor


def hub_layout(tensors):
    """Under the names of the published checkpoints."""
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("vision_tower.vision_model.", "vision_tower.")
        name = name.replace("model.language_model.", "language_model.model.", 1)
        name = name.removeprefix("model.") if name.startswith("model.") else name
        name = f"language_model.{name}" if name.startswith("lm_head") else name
        renamed[name.replace("vision_tower.", "vision_tower.vision_model.", 1)] = value
    return renamed


def v5_layout(tensors):
    """Under the names that version 5 of transformers has in memory."""
    renamed = {}
    for name, value in hub_layout(tensors).items():
        name = name.replace("vision_tower.vision_model.", "vision_tower.")
        name = name.replace("language_model.model.", "language_model.")
        name = name.replace("language_model.lm_head", "lm_head")
        renamed[name if name.startswith("lm_head") else f"model.{name}"] = value
    return renamed


def relaid(folder, layout):
    """The weights of a folder under other names."""
    file = folder / "model.safetensors"
    save_file(layout(load_file(file)), file, {"format": "pt"})


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BILINEAR)


@lru_cache(1)
def ten_images():
    """Real ones where they are, else made."""
    sets = ("photos-captions", "charts-qa", "receipts", "screenshots", "tables-qa")
    if DATA.exists():
        paths = [p for name in sets for p in sorted((DATA / name / "images").glob("*"))[:2]]
        return [Image(path).load() for path in paths]
    sizes = [(28, 28), (40, 90), (300, 71), (71, 300), (33, 34), (640, 480), (17, 5), (600, 20)]
    return [noise(w, h, n) for n, (w, h) in enumerate([*sizes, (5, 60), (29, 28)])]
