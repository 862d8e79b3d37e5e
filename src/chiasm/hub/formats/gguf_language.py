"""A language model with its tokenizer as llama.cpp reads them (GGUF)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.core.quiet import quiet
from chiasm.data.template import ChatTemplate
from chiasm.hub.formats.files import chat_template_for_parts, language_tensors
from chiasm.mllm.gguf_tokenizer import adds_space, name_of
from chiasm.mllm.model import MLLM

KNOWN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> llama.cpp's architecture."""


def language_in_the_way(model: MLLM, template: ChatTemplate) -> list[str]:
    """What llama.cpp's architectures cannot say of the language model, in a few words each."""
    config = model.language.config
    if config.model_type not in KNOWN:
        return [f"a language model '{config.model_type}' (only {', '.join(KNOWN)})"]
    found = []
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        found.append(f"rotary positions of the kind {rope['rope_type']}")
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds or (not kinds and getattr(config, "sliding_window", None)):
        found.append("layers that look back over a window")
    if config.hidden_act != "silu":
        found.append(f"{config.hidden_act} in the language model (it must be silu)")
    if name_of(template.tokenizer.backend_tokenizer) is None:
        found.append("a tokenizer that splits words in a way without a name in llama.cpp")
    return found


def write_language(file: Path, model: MLLM, template: ChatTemplate, dtype: Any) -> None:
    """dtype: gguf's, of matrices; vectors stay in single precision."""
    import gguf

    config, words = model.language.config, template.tokenizer
    tensors = language_tensors_named(model, len(words))
    architecture = KNOWN[config.model_type]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(file.parent.name)
    writer.add_file_type(FILE_TYPES[dtype.name])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    size = head_size(config)
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    rows = len(tensors["token_embd.weight"])
    writer.add_vocab_size(rows)
    _add_words(writer, template, rows)
    write_tensors(writer, tensors, dtype)


FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""llama.cpp's number of what most matrices are stored in."""


def language_tensors_named(model: MLLM, rows: int) -> dict[str, Tensor]:
    """The language model's tensors under their names in GGUF, in single precision."""
    import gguf

    config = model.language.config
    architecture = KNOWN[config.model_type]
    kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    body, head = language_tensors(model, rows)
    body = {f"model.{name}": value for name, value in body.items()}
    if head is not None:
        body["lm_head.weight"] = head
    found = {}
    for name, value in body.items():
        value = value.detach().float().cpu()
        if architecture == "llama" and ".q_proj." in name:
            value = interleaved(value, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            value = interleaved(value, config.num_key_value_heads)
        found[named(names, name)] = value
    return found


def named(names: Any, name: str) -> str:
    """A tensor's name in GGUF, by the map of its authors."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"{name} has no place in this architecture"
    return found


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix [heads·d, ...] in the order of a rotation of neighbours, which
    llama.cpp's llama does, where transformers turns the two halves of a head."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_tensors(writer: Any, tensors: dict[str, Tensor], dtype: Any) -> None:
    """Fill and close a file: matrices and larger in dtype, vectors in single precision."""
    import gguf

    for name, value in tensors.items():
        array = value.detach().float().cpu().contiguous().numpy()
        kind = dtype if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_words(writer: Any, template: ChatTemplate, rows: int) -> None:
    tokenizer = template.tokenizer
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    ids, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    words, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for word, place in ids.items():
        words[place], kinds[place] = word, NORMAL
    for place, token in added.items():
        words[place], kinds[place] = token.content, CONTROL if token.special else USER
    merges = [m if isinstance(m, str) else " ".join(m) for m in told["model"]["merges"]]
    if told["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        ranks = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), -float(rank))
        writer.add_token_scores([ranks.get(word, -1e9) for word in words])
        for place, word in enumerate(words):
            if word.startswith("<0x") and kinds[place] == NORMAL:
                kinds[place] = BYTE
        if tokenizer.unk_token_id is not None:
            kinds[tokenizer.unk_token_id] = UNKNOWN
            writer.add_unk_token_id(tokenizer.unk_token_id)
        writer.add_add_space_prefix(adds_space(tokenizer.backend_tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(merges)
    writer.add_tokenizer_pre(name_of(tokenizer.backend_tokenizer))
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "pad"):
        place = getattr(tokenizer, f"{name}_token_id")
        if place is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    others = [place for place in template.stop if place != tokenizer.eos_token_id]
    if others:
        writer.add_eot_token_id(others[0])
    # The chat template writes what a conversation begins with.
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template_for_parts(template))


NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's kinds of words."""


def read_back(file: Path, config: Any, rows: int) -> Any:
    """The language model of a file, by transformers' own reader; config: as it was written, since
    that reader overlooks some of it (the size of Qwen 3's heads); rows: of its tables."""
    from transformers import AutoModelForCausalLM

    config = type(config).from_dict(config.to_dict() | {"vocab_size": rows})
    with quiet():
        return AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
        ).eval()
