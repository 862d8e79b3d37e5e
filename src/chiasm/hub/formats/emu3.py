"""Emu3ForConditionalGeneration of transformers (2409.18869): Llama's blocks, a whole image
tokenizer inside, row ends among the codes.

Inside means the class's own networks: a tokenizer trained with them (model.hf_networks) goes in
whole. Our convolutional encoder is theirs with attention and time left out, which zeros say
exactly; our decoder is not theirs, so theirs is zeros, which draws grey, and ours lies beside in
chiasm/.

The class puts a row end after every row of codes it makes from pixels. A model trained without
them (model.row_ends) must not see them: give attention_mask 0 there and position_ids that count
what is left, as generate() does by itself; the logits are then those of our sequence.
Emu3Processor writes a size and wrappers around an image, which our models do not know: the
tokenizer takes the whole of what it writes before an image for the begin of image, and the whole
behind it for the end. It cuts images to multiples of a factor: with the image's side as the
factor, every image is squeezed to that side, as ours are. It counts on strides of 8 and on row
ends; for another model no processor is written (`unserved`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from chiasm.core.errors import CheckpointError
from chiasm.core.quiet import quiet
from chiasm.core.sample import Image, Sample, user
from chiasm.data import text as names
from chiasm.data.processor import Processor
from chiasm.hub.formats import unified_layout as layout
from chiasm.hub.formats.codebook import codebook
from chiasm.hub.formats.format import Target
from chiasm.hub.formats.published import load_published
from chiasm.hub.versions import write_json
from chiasm.train.checkpoint import read_json
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.model import Unified


def code_name(code: int) -> str:
    return f"<|visual token {code:06d}|>"


def code_of(name: str) -> int | None:
    """The inverse; None for a token that is no code."""
    number = name.removeprefix("<|visual token ").removesuffix("|>")
    return int(number) if number != name and number.isdigit() else None


WORDS = layout.Words("<|image start|>", "<|image end|>", "<|extra_200|>", code_name)
PARTS = {
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
"""Emu3Processor's names of what it writes around an image."""
STRIDE = 8
"""Pixels a code, as Emu3Processor counts."""


def _spelled(side: int) -> layout.Words:
    """As the processor spells an image of side · side codes."""
    before = f"{PARTS['boi_token']}{side}*{side}{PARTS['image_wrapper_token']}"
    behind = PARTS["eof_token"] + PARTS["eoi_token"]
    return replace(WORDS, begin_image=before, end_image=behind, parts=PARTS)


def unserved(model: Unified, processor: Processor) -> list[str]:
    """Why Emu3Processor cannot make this model's prompts."""
    found = [] if model.config.row_ends else ["no row ends (model.row_ends)"]
    tokenizer = _tokenizer(processor)
    if tokenizer.config.stride != STRIDE:
        found.append(f"{tokenizer.config.stride} pixels a code (it counts {STRIDE})")
    return found


def _words(model: Unified, processor: Processor) -> layout.Words:
    if unserved(model, processor):
        return WORDS
    return _spelled(_tokenizer(processor).config.image_size // STRIDE)


class Emu3:
    name = "Emu3"
    target: Target = "hf"

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "emu3"

    def load(self, folder: Path) -> tuple[Unified, Processor]:
        if (folder / layout.OURS).is_dir():
            return layout.load(folder, "model.text_model.")
        names = read_json(folder / "config.json").get("vocabulary_map") or {}
        if any(name.endswith(PARTS["image_wrapper_token"]) and "*" in name for name in names):
            raise CheckpointError(
                f"{folder}: an export of chiasm with row ends, without its folder "
                f"'{layout.OURS}/'; copy that too"
            )
        return load_published(folder, "emu3", WORDS, code_of)

    def obstacles(self, model: Unified, processor: Processor) -> list[str]:
        found = layout.obstacles(model, processor)
        if model.config.qk_norm and model.config.qk_norm != "rms":
            found.append("qk_norm (the class has none)")
        if model.config.post_norm:
            found.append("post_norm (the class normalises before its branches)")
        stock = _tokenizer(processor).config.hf_networks
        if stock is not None and stock.family != "emu3":
            found.append(f"the image tokenizer's {stock.family} networks")
        return found

    def export(self, model: Unified, processor: Processor, folder: Path) -> None:
        from transformers import Emu3Config, Emu3VQVAEConfig

        numbering = layout.Numbering(model.vocabulary, _words(model, processor))
        tokenizer = _tokenizer(processor)
        settings = Emu3VQVAEConfig(**_tokenizer_settings(tokenizer))
        text = layout.text_settings(model, numbering)
        config = Emu3Config(
            text_config=text,
            vq_config=settings.to_dict(),
            vocabulary_map=numbering.map,
            tie_word_embeddings=model.config.tied,
        )
        config.architectures = ["Emu3ForConditionalGeneration"]
        state = layout.transformer_state(model, numbering, "model.text_model.")
        state |= {f"model.vqmodel.{k}": v for k, v in _tokenizer_state(tokenizer, settings).items()}
        layout.write_folder(folder, model, processor, numbering, config, state)
        if not unserved(model, processor):
            _write_processor(folder, tokenizer.config.image_size)

    def verify(self, model: Unified, processor: Processor, folder: Path) -> str:
        from transformers import Emu3ForConditionalGeneration

        said = layout.verify(
            Emu3ForConditionalGeneration, folder, model, processor, _codes, _text_model
        )
        if reasons := unserved(model, processor):
            return f"{said}; no processor, as Emu3Processor cannot say {', '.join(reasons)}"
        _compare_prompts(processor, folder)
        return f"{said}; AutoProcessor makes the same prompts"


def _write_processor(folder: Path, side: int) -> None:
    """Emu3Processor with its image processor, as preprocessor_config.json too (vLLM)."""
    from transformers import AutoTokenizer, Emu3ImageProcessor, Emu3Processor

    half = [0.5, 0.5, 0.5]
    # A factor of the side and one pixel at most: whatever the aspect, side x side.
    images = Emu3ImageProcessor(
        min_pixels=1, max_pixels=1, spatial_factor=side, image_mean=half, image_std=half
    )
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    words.chat_template = INVITING
    Emu3Processor(images, words, chat_template=INVITING).save_pretrained(folder)
    told = images.to_dict() | {"processor_class": "Emu3Processor"}
    write_json(folder / "preprocessor_config.json", told)


INVITING = (
    layout.CHAT.removeprefix(names.BEGIN)
    + f"{{% if add_generation_prompt %}}{names.ASSISTANT}{{% endif %}}"
)
"""The class's processor begins every text itself (5.23: whatever add_special_tokens says), and ends
none, so the template invites the reply."""


def _compare_prompts(processor: Processor, folder: Path) -> None:
    """Raises CheckpointError where AutoProcessor makes another prompt or other pixels."""
    from transformers import AutoProcessor

    image = PIL.Image.new("RGB", (60, 40), (200, 30, 90))
    with quiet():
        reader = AutoProcessor.from_pretrained(folder, local_files_only=True)
    parts = [{"type": "image"}, {"type": "text", "text": "red?"}]
    text = reader.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    given = reader(images=[image], text=text, return_tensors="pt")
    found = given["input_ids"][0].tolist()
    ours = processor.prompts([Sample((user(Image(image), "red?"),))])[0][0].input_ids.tolist()
    vocabulary = processor.codec.vocabulary
    assert vocabulary is not None
    shown = reader.tokenizer.convert_tokens_to_ids(layout.PLACEHOLDER)
    drawn = {vocabulary.row_end, *range(vocabulary.first_code, vocabulary.size)}
    if [shown if i in drawn else i for i in ours] != found:
        raise CheckpointError(
            f"{folder}: AutoProcessor makes {len(found)} ids where this model has {len(ours)}; its "
            "files do not say the same"
        )


def _codes(theirs: Any, pixels: Tensor) -> Tensor:
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return torch.stack(theirs.model.vqmodel.encode(pixels, sizes).image_tokens)


def _text_model(theirs: Any) -> Any:
    return theirs.model.text_model


def _tokenizer(processor: Processor) -> Autoencoder:
    codec = processor.codec
    assert isinstance(codec, UnifiedCodec)
    return codec.autoencoder


def _tokenizer_settings(tokenizer: Autoencoder) -> dict[str, Any]:
    config, quantizer = tokenizer.config, tokenizer.quantizer
    codes = {"embed_dim": quantizer.width, "codebook_size": quantizer.codes}
    if config.hf_networks is not None:
        return config.hf_networks.settings | codes
    shape = layout.shape_of(config)
    return {
        **codes,
        "latent_channels": quantizer.width,
        "temporal_downsample_factor": 1,
        "attn_resolutions": [],
        "hidden_size": shape["base_channels"] * shape["channel_multiplier"][-1],
        **shape,
    }


def _tokenizer_state(tokenizer: Autoencoder, settings: Any) -> dict[str, Tensor]:
    from transformers import Emu3VQVAE

    points = codebook(tokenizer.quantizer)
    assert points is not None
    if tokenizer.config.hf_networks is not None:
        parts = {**tokenizer.encoder.state_dict(), **tokenizer.decoder.state_dict()}
        return {**parts, "quantize.embedding.weight": points}
    # Attention and temporal blocks add what their last layer gives: zeros, nothing. Their norms
    # keep what a fresh one has, as a division by zero would be no zero.
    fresh = Emu3VQVAE(settings).state_dict()
    norms = ("norm", "running_mean", "running_var", "num_batches_tracked")
    state = {
        name: value if any(n in name for n in norms) and "conv" not in name else value.zero_()
        for name, value in fresh.items()
    }
    state |= layout.encoder_state(tokenizer, lambda name: _encoder_name(name, tokenizer))
    now = state["quant_conv.conv.weight"][:, :, -1, 0, 0]  # the last of three frames is this one
    now.copy_(torch.eye(tokenizer.quantizer.width))
    return {**state, "quantize.embedding.weight": points}


def _encoder_name(name: str, tokenizer: Autoencoder) -> str:
    name = layout.level_name(name, tokenizer.config.res_blocks)
    if name.startswith("down."):
        return f"encoder.down_block.{name}"
    for ours, theirs in (("mid.0.", "middle_block.block_1."), ("mid.1.", "middle_block.block_2.")):
        name = name.replace(ours, theirs)
    return f"encoder.{name}"


EMU3 = Emu3()
