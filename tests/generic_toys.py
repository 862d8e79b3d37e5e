"""Tiny random models of types that chiasm has no layout for, with their own processors."""

import torch
import transformers as hf
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from chiasm.hub.generic import GenericProcessor, GenericVLM, save_generic, without_videos
from stock_toys import llama, tower, words

SQUARE = {"height": 28, "width": 28}
CHAT = (
    "{{% for m in messages %}}{{{{ m.role }}}}: {{% for p in m.content %}}"
    "{{{{ '{image}' if p.type == 'image' else p.text }}}}{{% endfor %}} {{% endfor %}}"
    "{{% if add_generation_prompt %}}assistant:{{% endif %}}"
)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def tokenizer(**tokens):
    made = words(begins=False)
    made.add_special_tokens({"additional_special_tokens": sorted(set(tokens.values()))})
    for name, token in tokens.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
        made.init_kwargs[name] = token
    return made


def ids(made):
    return {
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
    }


def qwen2_vl(name="Qwen2VL"):
    made = words(begins=False)
    tokens = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    made.add_special_tokens({"additional_special_tokens": tokens})
    image, video, start, end = made.convert_tokens_to_ids(tokens)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**SIZES, "vocab_size": len(made), "rope_parameters": rope, **ids(made)}
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 7,
        "mlp_ratio": 2, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "intermediate_size": 24, "out_hidden_size": 16, "window_size": 28,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = getattr(hf, f"{name}Config")(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(
        patch_size=7, merge_size=2, size={"shortest_edge": 196, "longest_edge": 28 * 28 * 4}
    )
    chat = CHAT.format(image="<|vision_start|><|image_pad|><|vision_end|>")
    given = {"image_processor": images, "tokenizer": made, "video_processor": None}
    return config, (without_videos(hf.Qwen2VLProcessor), given, chat)


def vipllava():
    made = words()
    config = hf.VipLlavaConfig(
        vision_config=tower("clip"), text_config=llama(made), vision_feature_layers=[-2, -1],
        image_token_index=made.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=SQUARE
    )
    given = {"image_processor": images, "tokenizer": made, "patch_size": 7}
    given |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, (hf.LlavaProcessor, given, CHAT.format(image="<image>"))


def llava_onevision():
    made = words()
    made.add_special_tokens({"additional_special_tokens": ["<video>"]})
    pins = [[28, 56], [56, 28], [28, 28]]
    config = hf.LlavaOnevisionConfig(
        vision_config=tower("siglip"), text_config=llama(made), image_grid_pinpoints=pins,
        image_token_index=made.convert_tokens_to_ids("<image>"), vision_aspect_ratio="anyres_max_9",
        video_token_index=made.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=pins)
    given = {"image_processor": images, "tokenizer": made, "num_image_tokens": 16,
             "vision_feature_select_strategy": "full", "video_processor": None}  # fmt: skip
    return config, (without_videos(hf.LlavaOnevisionProcessor), given, CHAT.format(image="<image>"))


def gemma3():
    made = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    shape = {"vocab_size": len(made), "head_dim": 8, "sliding_window": 8}
    text = hf.Gemma3TextConfig(**shape, **SIZES, **ids(made))
    config = hf.Gemma3Config(
        text_config=text, vision_config=tower("siglip"), mm_tokens_per_image=4,
        image_token_index=made.image_token_id, boi_token_index=made.boi_token_id,
        eoi_token_index=made.eoi_token_id,
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size=SQUARE)
    given = {"image_processor": images, "tokenizer": made, "image_seq_length": 4}
    return config, (hf.Gemma3Processor, given, CHAT.format(image="<boi>"))


def idefics2():
    made = words()
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56})
    given = {"image_processor": images, "tokenizer": made, "image_seq_len": 4}
    processor = hf.Idefics2Processor(**given)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 56, "patch_size": 7}  # fmt: skip
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                 "resampler_head_dim": 8, "num_key_value_heads": 1}  # fmt: skip
    config = hf.Idefics2Config(
        vision_config=vision, perceiver_config=perceiver, text_config=llama(processor.tokenizer),
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return config, (hf.Idefics2Processor, given, CHAT.format(image="<image>"))


TYPES = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": lambda: qwen2_vl("Qwen2_5_VL"),
    "vipllava": vipllava,
    "llava_onevision": llava_onevision,
    "gemma3": gemma3,
    "idefics2": idefics2,
}


def write(name, folder):
    """A model and processor of a type, saved as transformers does: (model, its processor)."""
    config, (kind, given, chat) = TYPES[name]()
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = given["tokenizer"].eos_token_id
    processor = kind(**given, chat_template=chat)
    save_generic(folder, GenericVLM(model), GenericProcessor(processor))
    return model, processor
