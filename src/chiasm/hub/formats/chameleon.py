"""ChameleonForConditionalGeneration of transformers (2405.09818): LayerNorm on queries and keys,
norms before or after the branches, an image tokenizer's encoder inside and no decoder.

The class never writes images: its forward sets the logits of image codes to the dtype's minimum.
Our decoder, which can, lies beside in chiasm/.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.data.processor import Processor
from chiasm.hub.formats import unified_layout as layout
from chiasm.hub.formats.codebook import codebook
from chiasm.hub.formats.format import Target
from chiasm.hub.formats.published import load_published
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.model import Unified


def code_name(code: int) -> str:
    """IMGIMG, the number with letters for digits, and one letter that means nothing."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def code_of(name: str) -> int | None:
    """The inverse; None for a token that is no code."""
    letters = name.removeprefix("IMGIMG")[:-1]
    if letters == name[:-1] or not letters or set(letters) - set("ABCDEFGHIJ"):
        return None
    return int("".join(str("ABCDEFGHIJ".index(letter)) for letter in letters))


WORDS = layout.Words("<racm3:break>", "<eoss>", None, code_name)


class Chameleon:
    name = "Chameleon"
    target: Target = "hf"

    def recognises(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "chameleon"

    def load(self, folder: Path) -> tuple[Unified, Processor]:
        if (folder / layout.OURS).is_dir():
            return layout.load(folder, "model.")
        return load_published(folder, "chameleon", WORDS, code_of)

    def obstacles(self, model: Unified, processor: Processor) -> list[str]:
        found = layout.obstacles(model, processor)
        if not model.config.qk_norm:
            found.append("qk_norm false (the class always normalises queries and keys)")
        stock = _tokenizer(processor).config.hf_networks
        if stock is not None and stock.family != "chameleon":
            found.append(f"the image tokenizer's {stock.family} networks")
        if model.config.row_ends:
            found.append("row_ends (the class writes codes without them)")
        return found

    def export(self, model: Unified, processor: Processor, folder: Path) -> None:
        from transformers import ChameleonConfig, ChameleonVQVAEConfig

        numbering = layout.Numbering(model.vocabulary, WORDS)
        tokenizer = _tokenizer(processor)
        config = ChameleonConfig(
            **layout.text_settings(model, numbering),
            swin_norm=model.config.post_norm,
            vocabulary_map=numbering.map,
            vq_config=ChameleonVQVAEConfig(**_tokenizer_settings(tokenizer)),
        )
        config.architectures = ["ChameleonForConditionalGeneration"]
        state = layout.transformer_state(model, numbering, "model.")
        state |= {f"model.vqmodel.{k}": v for k, v in _tokenizer_state(tokenizer).items()}
        layout.write_folder(folder, model, processor, numbering, config, state)
        _write_processor(folder, tokenizer, processor.codec.codes_per_image)

    def verify(self, model: Unified, processor: Processor, folder: Path) -> str:
        from transformers import ChameleonForConditionalGeneration

        return layout.verify(
            ChameleonForConditionalGeneration,
            folder,
            model,
            processor,
            lambda theirs, pixels: theirs.model.vqmodel.encode(pixels).image_tokens.view(
                len(pixels), -1
            ),
            lambda theirs: theirs.model,
        )


def _tokenizer(processor: Processor) -> Autoencoder:
    codec = processor.codec
    assert isinstance(codec, UnifiedCodec)
    return codec.autoencoder


def _tokenizer_settings(tokenizer: Autoencoder) -> dict[str, Any]:
    config, quantizer = tokenizer.config, tokenizer.quantizer
    codes = {"embed_dim": quantizer.width, "num_embeddings": quantizer.codes}
    if config.hf_networks is not None:
        return config.hf_networks.settings | codes
    return {
        **codes,
        "latent_channels": quantizer.width,
        "resolution": config.image_size,
        "attn_resolutions": None,
        "attn_type": "none",
        **layout.shape_of(config),
    }


def _tokenizer_state(tokenizer: Autoencoder) -> dict[str, Tensor]:
    """What is compared with the codebook is the encoder's output itself: quant_conv does nothing,
    and nothing follows post_quant_conv in this class."""
    quantizer = tokenizer.quantizer
    points = codebook(quantizer)
    assert points is not None
    state = {"quantize.embedding.weight": points}
    if tokenizer.config.hf_networks is not None:
        state |= tokenizer.encoder.state_dict()
        latent = int(state["quant_conv.weight"].shape[1])
        state["post_quant_conv.weight"] = torch.zeros(latent, quantizer.width, 1, 1)
        state["post_quant_conv.bias"] = torch.zeros(latent)
        return state
    state |= layout.encoder_state(tokenizer, lambda name: _encoder_name(name, tokenizer))
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"] = torch.eye(quantizer.width)[..., None, None]
        state[f"{name}.bias"] = torch.zeros(quantizer.width)
    return state


def _encoder_name(name: str, tokenizer: Autoencoder) -> str:
    name = layout.level_name(name, tokenizer.config.res_blocks)
    for ours, theirs in (("mid.0.", "mid.block_1."), ("mid.1.", "mid.block_2.")):
        name = name.replace(ours, theirs)
    return f"encoder.{name}"


def _write_processor(folder: Path, tokenizer: Autoencoder, codes: int) -> None:
    """Images are squeezed to one size, as UnifiedCodec does."""
    from transformers import AutoTokenizer, ChameleonProcessor

    side = tokenizer.config.image_size
    images = _image_processor()(
        size={"height": side, "width": side},
        resample=3,
        do_center_crop=False,
        rescale_factor=1 / 127.5,
    )
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = ChameleonProcessor(images, words, image_seq_length=codes)
    made.chat_template = layout.CHAT
    made.save_pretrained(folder)


def _image_processor() -> Any:
    """The class that computes with PIL: transformers 5.0 gives it the plain name."""
    module = "transformers.models.chameleon.image_processing"
    try:
        return import_module(f"{module}_pil_chameleon").ChameleonImageProcessorPil
    except ImportError:
        return import_module(f"{module}_chameleon").ChameleonImageProcessor


CHAMELEON = Chameleon()
