"""What the published layouts of unified models share: one vocabulary of text and image codes.

A folder has what its class in transformers reads, and in chiasm/ what that class has no place for:
the run's own configuration, text tokenizer and image tokenizer, whose decoder draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.config import to_dict
from chiasm.core.device import model_device
from chiasm.core.errors import CheckpointError
from chiasm.core.quiet import quiet
from chiasm.core.vocab import Vocabulary
from chiasm.data import text as names
from chiasm.data.processor import Processor
from chiasm.data.template import RoleTemplate
from chiasm.hub import autoencoder as autoencoders
from chiasm.hub import folder as files
from chiasm.hub.formats.codebook import codebook
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.codec import UnifiedCodec
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.unified.model import Unified

OURS = "chiasm"
PLACEHOLDER = "<image>"
"""What transformers' processors write where images go; our begin of image is renamed."""


ROWS = {"embed_tokens.weight", "lm_head.weight"}
"""What has a row an id."""


@dataclass(frozen=True)
class Words:
    """How a layout calls what its class or processor looks for by name: the ids around an image,
    the end of a row of codes (None: it has none), and the codes."""

    begin_image: str
    end_image: str
    row_end: str | None
    code: Callable[[int], str]
    parts: Mapping[str, str] = field(default_factory=dict)
    """Where a processor spells begin_image and end_image in several tokens: its names of these, and
    how they are written. The longest match is the token of the whole."""


@dataclass(frozen=True)
class Numbering:
    """The ids of an exported model: ours as they are, and behind them what only the class needs."""

    vocabulary: Vocabulary
    words: Words

    @property
    def extra(self) -> list[str]:
        """Tokens the model has never seen: it must not write them."""
        wanted = self.words.row_end if self.row_end is None else None
        return [PLACEHOLDER, *([wanted] if wanted else []), *self.words.parts.values()]

    @property
    def row_end(self) -> int | None:
        """The model's own id at the end of a row of codes."""
        return self.vocabulary.row_end

    @property
    def size(self) -> int:
        return self.vocabulary.size + len(self.extra)

    @property
    def map(self) -> dict[str, int]:
        """The class's vocabulary_map."""
        first, size = self.vocabulary.first_code, self.vocabulary.size
        found = {self.words.code(code): first + code for code in range(self.vocabulary.codes)}
        found |= {name: size + place for place, name in enumerate(self.extra)}
        found[self.words.begin_image] = self.vocabulary.begin_image
        found[self.words.end_image] = self.vocabulary.end_image
        if self.words.row_end and self.row_end is not None:
            found[self.words.row_end] = self.row_end
        return found


def obstacles(model: Unified, processor: Processor) -> list[str]:
    """What no layout of this kind can say."""
    config, codec = model.config, processor.codec
    assert isinstance(codec, UnifiedCodec)
    tokenizer = codec.autoencoder
    found = {
        "qk_norm 'rms' (the class knows LayerNorm or none)": config.qk_norm == "rms",
        "attention_softcap": bool(config.attention_softcap),
        "logit_softcap": bool(config.logit_softcap),
        "image_attention 'bidirectional' (the class is causal)": config.image_attention != "causal",
        "rope '2d'": config.rope == "2d",
        "mup_base_width (the class does not divide its logits)": config.widening != 1.0,
        "image_objective 'masked'": config.image_objective != "next",
        "grids (sizes that are announced)": bool(config.grids),
        "the image tokenizer's ResidualVQ (one code a place)": codebook(tokenizer.quantizer)
        is None,
        "the image tokenizer's vit": tokenizer.config.vit is not None,
    }
    return [name for name, there in found.items() if there]


def transformer_state(model: Unified, numbering: Numbering, prefix: str) -> dict[str, Tensor]:
    """The transformer's tensors under `prefix`, with rows of zeros for what only the class needs;
    lm_head stays at the top, and away where it is the embedding."""
    state = files.plain_state(model)
    for name in ROWS & set(state):
        unseen = state[name].new_zeros(len(numbering.extra), model.config.hidden_size)
        state[name] = torch.cat([state[name], unseen])
    return {(k if k.startswith("lm_head") else prefix + k): v for k, v in state.items()}


def text_settings(model: Unified, numbering: Numbering) -> dict[str, Any]:
    """What both classes' configurations call alike."""
    config, vocabulary = model.config, model.vocabulary
    return {
        "vocab_size": numbering.size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.begin,
        "eos_token_id": vocabulary.end,
    }


def encoder_state(tokenizer: Autoencoder, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Our convolutional encoder's tensors by their published names."""
    return {rename(name): value for name, value in tokenizer.encoder.state_dict().items()}


def level_name(name: str, blocks: int) -> str:
    """down.I.J.* -> down.I.block.J.* or down.I.downsample.*; other names as they are."""
    part = name.split(".")
    if part[0] != "down":
        return name
    if int(part[2]) == blocks:
        return ".".join(["down", part[1], "downsample", *part[3:]])
    return ".".join(["down", part[1], "block", *part[2:]])


def shape_of(config: AutoencoderConfig) -> dict[str, Any]:
    """Widths and depths of our convolutional encoder in the words of both classes."""
    multipliers = config.multipliers if config.res_blocks else (1,) * len(config.multipliers)
    return {
        "base_channels": config.base_channels,
        "channel_multiplier": list(multipliers),
        "num_res_blocks": config.res_blocks,
    }


def write_folder(
    folder: Path,
    model: Unified,
    processor: Processor,
    numbering: Numbering,
    config: Any,
    state: dict[str, Tensor],
) -> None:
    """Everything but a processor: weights, configurations, tokenizer, and chiasm/."""
    from transformers import GenerationConfig

    template, codec = processor.template, processor.codec
    assert isinstance(template, RoleTemplate)
    assert isinstance(codec, UnifiedCodec)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=model.vocabulary.begin,
        eos_token_id=model.vocabulary.end,
        pad_token_id=model.vocabulary.pad,
        suppress_tokens=[model.vocabulary.size + place for place in range(len(numbering.extra))],
    ).save_pretrained(folder)
    stock_tokenizer(template.tokenizer, numbering).save_pretrained(folder)
    ours = folder / OURS
    ours.mkdir()
    (ours / "model.json").write_text(json.dumps(to_dict(model.config), indent=2))
    template.tokenizer.save(str(ours / "tokenizer.json"))
    autoencoders.save(ours / "image_tokenizer", codec.autoencoder)


def stock_tokenizer(tokenizer: Tokenizer, numbering: Numbering) -> Any:
    """Our text tokenizer for transformers: codes are words too, and special tokens have the names
    that the layout's processor looks for. What it appends to a prompt invites the reply."""
    from transformers import PreTrainedTokenizerFast

    words = numbering.words
    renamed = {names.BEGIN_IMAGE: words.begin_image, names.END_IMAGE: words.end_image}
    if words.row_end and numbering.row_end is not None:
        renamed[str(tokenizer.id_to_token(numbering.row_end))] = words.row_end
    saved = json.loads(tokenizer.to_str())
    vocabulary = saved["model"]["vocab"]
    saved["model"]["vocab"] = {renamed.get(k, k): v for k, v in vocabulary.items()}
    for token in saved["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    theirs = Tokenizer.from_str(json.dumps(saved))
    codes = [words.code(code) for code in range(numbering.vocabulary.codes)]
    theirs.add_special_tokens([*codes, *numbering.extra])
    assert theirs.get_vocab_size() == numbering.size
    made = PreTrainedTokenizerFast(
        tokenizer_object=theirs,
        bos_token=names.BEGIN,
        eos_token=names.END,
        pad_token=names.PAD,
        sep_token=names.ASSISTANT,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens={
            "image_token": PLACEHOLDER,
            "boi_token": words.begin_image,
            "eoi_token": words.end_image,
            **words.parts,
        },
    )
    made.chat_template = CHAT
    return made


CHAT = (
    "<s>{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    f"{{% else %}}{PLACEHOLDER}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
"""RoleTemplate in jinja. The invitation to reply is the processor's sep_token."""


def verify(
    kind: Any,
    folder: Path,
    model: Unified,
    processor: Processor,
    codes_of: Callable[[Any, Tensor], Tensor],
    text_model: Callable[[Any], Any],
) -> str:
    """Load with the class, compare hidden × head on a conversation with an image, and the codes of
    images of noise. Raises CheckpointError where a weight is missing or something differs."""
    with quiet():
        theirs, loading = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    odd = [*loading["missing_keys"], *loading["unexpected_keys"]]
    if odd:
        raise CheckpointError(f"{folder}: {kind.__name__} misses or does not know {odd[0]}")
    codec = processor.codec
    assert isinstance(codec, UnifiedCodec)
    tokenizer = codec.autoencoder
    random = torch.Generator().manual_seed(0)
    side = tokenizer.config.image_size
    pixels = torch.rand(2, 3, side, side, generator=random) * 2 - 1
    with torch.inference_mode():
        ours, read = tokenizer.encode(pixels).flatten(1), codes_of(theirs.eval(), pixels)
        same = float((ours == read.flatten(1)).double().mean())
        ids, expected = _logits(model, ours[0])
        hidden = text_model(theirs)(ids).last_hidden_state
        found = theirs.lm_head(hidden)[..., : model.vocabulary.size]
    apart = float((found - expected).abs().max())
    if same < 0.999 or apart > 1e-3:
        raise CheckpointError(
            f"{folder}: {kind.__name__} reads it otherwise: {same:.2%} of the codes agree and "
            f"logits differ by up to {apart:.1g}; please report this model's model.json"
        )
    return f"{kind.__name__} loads it; logits within {apart:.1e}, {same:.1%} of the codes equal"


def _logits(model: Unified, codes: Tensor) -> tuple[Tensor, Tensor]:
    """ids [1 T] of an image among text, and our logits [1 T V] for them."""
    v = model.vocabulary
    text = np.random.default_rng(0).integers(0, v.text, 12).tolist()
    image = [v.begin_image, *(codes + v.first_code).tolist(), v.end_image]
    ids = torch.tensor([[v.begin, *text[:6], *image, *text[6:]]])[:, : model.config.max_length]
    zero, place = torch.zeros_like(ids), torch.arange(ids.shape[1])[None]
    batch = Batch(ids, torch.full_like(ids, IGNORE), zero, place, zero, place)
    batch = batch.to(model_device(model))
    return ids, model.eval().logits(model(batch)).float().cpu()


def load(folder: Path, prefix: str) -> tuple[Unified, Processor]:
    """An export of ours: the transformer from the class's file, the rest from chiasm/."""
    from chiasm.hub import unified

    ours = folder / OURS
    config = files.read_config(ours, UnifiedConfig)
    autoencoder, _ = autoencoders.load(ours / "image_tokenizer")
    model, processor = unified.build(config, files.read_tokenizer(ours), autoencoder)
    file = folder / "model.safetensors"
    state = {}
    for name, value in files.read_tensors(file).items():
        name = name.removeprefix(prefix)
        if name in ROWS:
            value = value[: model.vocabulary.size]
        if name.split(".")[0] in ("embed_tokens", "layers", "norm", "lm_head"):
            state[name] = value
    files.load_strictly(model, state, file)
    return model.eval(), processor
