"""A unified checkpoint that somebody else published: no configuration of ours beside it.

Image codes are numbered anywhere in such a vocabulary; ours stand last. Rows of the embedding and
of the head, and the tokenizer's ids, are put into our order, and back into nothing else: the model
is the same function of the same ids. Images are squeezed to the size that theirs are cut to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from chiasm.core.errors import CheckpointError
from chiasm.data import text as names
from chiasm.data.processor import Processor
from chiasm.hub import folder as files
from chiasm.hub.formats.unified_layout import PLACEHOLDER, ROWS, Words
from chiasm.train.checkpoint import read_json, read_tensors
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig, StockNetworks, UnifiedConfig, VQConfig
from chiasm.unified.model import Unified

Family = Literal["chameleon", "emu3"]
PREFIX = {"chameleon": "model.", "emu3": "model.text_model."}


def load_published(
    folder: Path, family: Family, words: Words, code_of: Callable[[str], int | None]
) -> tuple[Unified, Processor]:
    """The model and its processor. Raises CheckpointError for what our transformer cannot say."""
    from transformers import AutoConfig

    from chiasm.hub import unified

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config if family == "chameleon" else config.text_config
    known = read_json(folder / "config.json").get("vocabulary_map") or {}
    codes = {code: number for name, number in known.items() if (code := code_of(name)) is not None}
    if sorted(codes) != list(range(len(codes))) or not codes:
        raise CheckpointError(f"{folder / 'config.json'}: vocabulary_map names no image codes")
    tensors = _tensors(folder)
    tokenizer = _image_tokenizer(folder, family, config, tensors)
    order = _order(text.vocab_size, [codes[code] for code in range(len(codes))])
    text_tokenizer = _renumbered(folder, order[: -len(codes)], set(codes.values()), words)
    model, processor = unified.build(
        _config(folder, text, family, tensors), text_tokenizer, tokenizer
    )
    state = {}
    for name, value in tensors.items():
        plain = name.removeprefix(PREFIX[family])
        if plain.split(".")[0] in ("embed_tokens", "layers", "norm", "lm_head"):
            state[plain] = value.float()
    kept = torch.tensor([*order[: model.vocabulary.text], *order[-len(codes) :]])
    for name in ROWS & set(state):
        state[name] = state[name][kept]
    files.load_strictly(model, state, folder)
    return model.eval(), processor


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All shards, under the names that transformers has in memory."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= read_tensors(file)
    if not found:
        raise CheckpointError(f"{folder}: no .safetensors file; download the whole checkpoint")
    older = {
        "text_model.lm_head.": "lm_head.",
        "text_model.model.": "model.text_model.",
        "text_model.": "model.text_model.",
        "vqmodel.": "model.vqmodel.",
    }
    for old, new in older.items():
        found = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in found.items()}
    return found


def _config(folder: Path, text: Any, family: Family, tensors: dict[str, Tensor]) -> UnifiedConfig:
    size = text.hidden_size // text.num_attention_heads
    odd = {
        "rms_norm_eps": text.rms_norm_eps != 1e-5,
        "attention_bias": bool(getattr(text, "attention_bias", False)),
        "mlp_bias": bool(getattr(text, "mlp_bias", False)),
        "hidden_act": text.hidden_act != "silu",
        "rope_parameters": text.rope_parameters.get("rope_type", "default") != "default",
        "head_dim": getattr(text, "head_dim", None) not in (None, size),
    }
    if wrong := [name for name, differs in odd.items() if differs]:
        raise CheckpointError(
            f"{folder / 'config.json'}: {wrong[0]} {getattr(text, wrong[0], None)} is not what our "
            "transformer does; load it with transformers"
        )
    return UnifiedConfig(
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        intermediate_size=text.intermediate_size,
        tied="lm_head.weight" not in tensors,
        qk_norm=family == "chameleon",
        post_norm=bool(getattr(text, "swin_norm", False)),
        rope_theta=float(text.rope_parameters["rope_theta"]),
        factorized_code_embedding=False,
        local_attention_init=False,
        max_length=text.max_position_embeddings,
    )


def _image_tokenizer(
    folder: Path, family: Family, config: Any, tensors: dict[str, Tensor]
) -> Autoencoder:
    """Its networks by transformers' classes, around our codebook."""
    settings = read_json(folder / "config.json")["vq_config"]
    known = type(config.vq_config).__annotations__  # its own fields, none of every model's
    settings = {name: value for name, value in settings.items() if name in known}
    points = tensors["model.vqmodel.quantize.embedding.weight"].float()
    side = _image_side(folder, config.vq_config)
    networks = StockNetworks(family, settings)
    shape = AutoencoderConfig(
        VQConfig(*points.shape), side, hf_networks=networks, decoder_channels=0
    )
    made = Autoencoder(shape)
    prefix = "model.vqmodel."
    own = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    for part in (made.encoder, made.decoder):
        files.load_strictly(
            part, {name: own[name] for name in part.state_dict() if name in own}, folder
        )
    quantizer = made.quantizer
    for name in ("embedding", "cluster_sum"):
        getattr(quantizer, name).copy_(points)
    quantizer.started.fill_(True)  # type: ignore[operator]
    return made.eval()


def _image_side(folder: Path, settings: Any) -> int:
    """Pixels, as the folder's processor says, else the tokenizer's resolution."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            saved = read_json(folder / name)
            saved = saved.get("image_processor", saved)
            size = saved.get("crop_size" if saved.get("do_center_crop") else "size") or {}
            if "height" in size:
                return int(size["height"])
    return int(getattr(settings, "resolution", 512))


def _order(size: int, codes: list[int]) -> list[int]:
    """Their ids in our order: all others, then the codes."""
    last = set(codes)
    return [number for number in range(size) if number not in last] + codes


def _renumbered(folder: Path, order: list[int], codes: set[int], words: Words) -> Tokenizer:
    """Their tokenizer without the codes, ids counted anew, with the names that our template looks
    for. Raises CheckpointError where nothing stands between a prompt and its reply: Emu3-Chat says
    that, and the size of images, in words of its own."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; download the whole checkpoint")
    saved = json.loads(file.read_text(encoding="utf-8"))
    place = {number: new for new, number in enumerate(order)}
    settings = read_json(folder / "tokenizer_config.json")
    if not settings.get("sep_token"):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: no sep_token, so its prompts are not ours; "
            "load it with transformers and its own processor"
        )
    renamed = {
        PLACEHOLDER: "<placeholder>",
        words.begin_image: names.BEGIN_IMAGE,
        words.end_image: names.END_IMAGE,
        **{
            _content(settings[key]): name
            for key, name in (
                ("bos_token", names.BEGIN),
                ("eos_token", names.END),
                ("pad_token", names.PAD),
                ("sep_token", names.ASSISTANT),
            )
            if settings.get(key)  # a token, or what says more about one
        },
    }
    vocabulary = saved["model"]["vocab"]
    saved["model"]["vocab"] = {
        renamed.get(name, name): place[number]
        for name, number in vocabulary.items()
        if number not in codes
    }
    saved["added_tokens"] = [
        {**t, "id": place[t["id"]], "content": renamed.get(t["content"], t["content"])}
        for t in saved["added_tokens"]
        if t["id"] not in codes
    ]
    saved["post_processor"] = None  # it names tokens that are now called otherwise
    made = Tokenizer.from_str(json.dumps(saved))
    for number in range(made.get_vocab_size(), len(order)):  # rows of the model without a word
        made.add_special_tokens([AddedToken(f"<unused {number}>", special=True)])
    return made


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)
